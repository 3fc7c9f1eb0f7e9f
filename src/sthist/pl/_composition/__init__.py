"""Figures of how much of each cell type there is, and of which types lie near each other."""
