"""Predicted expression: where genes are, which can be predicted, and whether clusters come back."""
