"""Annotations and selections of other programs."""
