"""How far a predictor can be trusted: scores of held-out groups, and how usual a region is."""
