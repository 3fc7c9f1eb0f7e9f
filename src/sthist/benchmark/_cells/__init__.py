"""Protocols for models of single cells."""
