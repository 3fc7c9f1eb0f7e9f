"""Which cell types lie near each other: bivariate Moran's R of all pairs."""
