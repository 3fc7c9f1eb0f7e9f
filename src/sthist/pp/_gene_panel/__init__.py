"""Which genes are predicted and scored: the panel of a study, and sets of its most telling genes."""
