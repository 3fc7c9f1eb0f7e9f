"""Cores of a tissue microarray: found, numbered, named."""
