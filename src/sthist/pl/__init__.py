"""Plots: matplotlib axes in, axes out."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "_alignment": ["alignment"],
        "_image_metrics": ["image_metrics"],
        "_overlay": ["overlay", "tiles"],
        "_virtual_he": ["virtual_he"],
    },
)
