"""Synthetic histology of an expression: C2L-ST."""
