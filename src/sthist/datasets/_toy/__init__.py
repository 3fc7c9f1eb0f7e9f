"""The toy section: its cells and molecules, what instruments see of it, and its other kinds."""
