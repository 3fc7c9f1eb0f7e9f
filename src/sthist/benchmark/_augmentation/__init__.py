"""Whether synthetic tiles make a predictor of expression better, beyond a longer training and ordinary augmentation."""
