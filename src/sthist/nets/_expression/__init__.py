"""Gene expression from tiles and embeddings: networks and their losses."""
