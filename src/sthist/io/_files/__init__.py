"""Files of images and tables, opened and checked."""
