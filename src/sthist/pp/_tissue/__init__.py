"""What is tissue: its outlines, and which regions show none."""
