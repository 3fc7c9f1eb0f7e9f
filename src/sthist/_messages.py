"""Names and numbers as messages show them: plain, and not all of a long list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

SHOWN = 8


def plain(value: Any) -> Any:
    """A value as Python's own kind of number or text; lists, tuples, sets, mappings and arrays with all that they hold.

    Examples
    --------
    >>> import numpy as np
    >>> from sthist._messages import plain
    >>> plain(np.str_("u")), plain([np.int64(3), "b"]), plain(np.array(["u", "v"]))
    ('u', [3, 'b'], ['u', 'v'])
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple | set | frozenset) and type(value).__module__ == "builtins":
        return type(value)(map(plain, value))
    if isinstance(value, dict):
        return {plain(key): plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray) or (hasattr(value, "to_numpy") and hasattr(value, "dtype")):
        return [plain(each) for each in np.asarray(value).tolist()]
    return value


def listed(values: Iterable[Any], most: int = SHOWN) -> str:
    """Names one after the other, each as Python writes it, of many the first.

    Examples
    --------
    >>> from sthist._messages import listed
    >>> listed(["a", "b"]), listed(range(12), most=3)
    ("'a', 'b'", '0, 1, 2 and 9 more')
    """
    every = [plain(value) for value in values]
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(map(repr, every[:most])) + more


def several(n: int, thing: str) -> str:
    """A number of things."""
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def shortened(names: Iterable[str], most: int = 4) -> str:
    """The first of some names, and how many more there are."""
    every = list(names)
    more = f", {len(every) - most} more" if len(every) > most else ""
    return ", ".join(map(str, every[:most])) + more
