"""Samples to try things on; nothing is downloaded."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__, submod_attrs={"_toy": ["toy"]})
