"""Protocols: how methods are scored, as tidy tables."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__, submod_attrs={"_virtual_he": ["virtual_he"]})
