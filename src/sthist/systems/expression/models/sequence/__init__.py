"""Models that see the spots of a slide as one sequence."""
