"""How much of each cell type a spot holds, from its counts and a reference: least squares, or cell2location."""
