"""Figures of single cells: on the slide, as galleries, beside spots, and their scores."""
