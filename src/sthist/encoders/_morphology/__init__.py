"""The built-in encoder: named features of stain, nuclei and texture."""
