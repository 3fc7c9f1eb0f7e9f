"""From registered sections to pairs of tiles that a model is trained on."""
