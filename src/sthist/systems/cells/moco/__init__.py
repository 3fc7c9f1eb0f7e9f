"""An encoder of cells that learns without labels, from crops of nuclei."""
