"""Numbers of a region from its histology: what predictors of genes, of cell types and of single cells share."""
