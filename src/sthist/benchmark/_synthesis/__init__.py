"""Synthetic tiles held against real ones: how real they look, and whether they follow the expression."""
