"""How models of cell composition are compared."""
