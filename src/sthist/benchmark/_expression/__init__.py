"""Models of expression compared on what they were not trained on: folds, gene sets, scores, cost."""
