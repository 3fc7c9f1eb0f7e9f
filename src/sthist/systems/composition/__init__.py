"""Cell composition of regions from H&E: how much of each cell type a spot holds."""
