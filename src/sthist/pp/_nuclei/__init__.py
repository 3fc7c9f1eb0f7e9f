"""Nuclei of an H&E, as shapes and a table."""
