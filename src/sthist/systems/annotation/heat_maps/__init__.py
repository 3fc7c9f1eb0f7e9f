"""Heat maps of a section: windows that slide over it, scored and joined."""
