"""The training of a translation: one step, its losses, and what is looked at after an epoch."""
