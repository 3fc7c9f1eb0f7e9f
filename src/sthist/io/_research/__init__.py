"""Formats of research data sets."""
