"""Protocols: how methods are scored, as tidy tables."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "_annotation_transfer": ["annotation_transfer"],
        "_augmentation.protocol": ["augmentation"],
        "_augmentation.result": ["AugmentationScores"],
        "_cells.simulation": ["SimulatedSpots", "simulate_spots"],
        "_composition.protocol": ["composition"],
        "_cross_validation": ["ablate_virtual_he", "cross_validate_virtual_he"],
        "_expression.protocol": ["expression"],
        "_nuclei": ["nucleus_preservation"],
        "_synthesis.protocol": ["SynthesisScores", "synthesis"],
        "_statistics": ["over_seeds", "region_tests"],
        "_virtual_he": ["virtual_he"],
    },
)
