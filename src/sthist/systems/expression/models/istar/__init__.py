"""iStar: expression of superpixels, from a map of features of the slide."""
