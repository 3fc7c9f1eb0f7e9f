"""Single cells from H&E: expression of every nucleus, learned from spots that hold many."""
