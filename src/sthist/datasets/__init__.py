"""Samples to try things on: a toy section, transcriptomics simulated on real histology, and public data sets."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "_public": ["cosmx_nsclc", "xenium_brain", "xenium_breast", "xenium_liver", "xenium_lung", "xenium_pancreas"],
        "_public_spots": ["bracs", "her2st", "hest", "single_cell_reference", "spider", "stimage", "stnet"],
        "_simulate": ["simulate_hrst"],
        "_toy.section": ["toy"],
    },
)
