"""Diffusion of histology tiles, and its adapter to gene expression."""
