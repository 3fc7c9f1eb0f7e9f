"""Expression of genes from histology: nine published models and baselines behind one verb."""
