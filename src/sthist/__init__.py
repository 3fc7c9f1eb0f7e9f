"""Histology and spatial transcriptomics, linked in both directions."""

import lazy_loader as _lazy

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submodules=[
        "benchmark",
        "datasets",
        "encoders",
        "io",
        "metrics",
        "models",
        "pl",
        "pp",
        "scale",
        "stains",
        "tiles",
        "tl",
    ],
    submod_attrs={"_settings": ["settings"]},
)
