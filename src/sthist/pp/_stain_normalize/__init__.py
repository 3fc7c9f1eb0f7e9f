"""Stain normalisation."""
