"""Regions: drawn as rasters, and searched for points."""
