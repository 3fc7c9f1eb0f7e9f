"""Expression of genes from histology: eleven published models and baselines behind one verb."""
