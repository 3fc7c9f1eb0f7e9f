"""Cell composition from embeddings, and from tiles and their neighbours: networks and their losses."""
