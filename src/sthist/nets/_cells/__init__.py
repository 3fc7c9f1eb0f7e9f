"""Networks of single cells."""
