"""What is done with pixels alone: tissue, nuclei, stains, shifts, registration."""
