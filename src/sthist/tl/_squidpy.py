"""Squidpy without what it warns of when it is imported, and of its own next release."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def squidpy() -> Iterator[Any]:
    """The module, inside of which its known warnings, and what it says of its own settings, are not shown."""
    log = logging.getLogger("spatialdata._logging")
    before = log.level
    with warnings.catch_warnings():
        # Its docstrings name arguments that its functions no longer have.
        warnings.filterwarnings("ignore", message=".* is not a valid key!", category=SyntaxWarning)
        # Version 1.8 names its successors, which 1.6 does not have.
        warnings.filterwarnings("ignore", message="Calling `spatial_neighbors` is deprecated", category=FutureWarning)
        import squidpy as sq

        log.setLevel(logging.WARNING)
        try:
            yield sq
        finally:
            log.setLevel(before)
