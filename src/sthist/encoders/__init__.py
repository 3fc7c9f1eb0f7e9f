"""Image to embedding: a registry over well-kept collections of networks, and one encoder that needs no weights."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "_encoder": ["Encoder", "Joined"],
        "_get": ["available", "get"],
        "_morphology.encoder": ["Morphology", "morphology_feature_names"],
        "_transform": ["Transform"],
    },
)
