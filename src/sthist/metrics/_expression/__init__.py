"""Scores of predicted expression: by gene, by spot, as maps, beside what noise allows."""
