"""Molecules: indexed, counted, drawn."""
