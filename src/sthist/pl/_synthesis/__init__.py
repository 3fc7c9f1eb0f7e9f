"""Figures of synthetic tiles, and of what they are good for."""
