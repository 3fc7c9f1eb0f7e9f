"""Parts of a sample that several readers make alike."""
