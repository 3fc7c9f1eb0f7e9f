"""Regions on the slide: cells, spots, tiles, and what is known of them."""
