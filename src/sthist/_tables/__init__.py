"""Tables: their rows, labels and genes."""
