"""Features of every place of a slide, as an image."""
