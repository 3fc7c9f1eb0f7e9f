"""Classes of tiles: annotators trained on labels, and prompts of image-text encoders."""
