"""Samples to try things on: a toy section, and transcriptomics simulated on real histology."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__, submod_attrs={"_simulate": ["simulate_hrst"], "_toy": ["toy"]})
