"""Colours of genes."""

from __future__ import annotations

from typing import Any

import numpy as np

SATURATION, VALUE = 0.65, 0.95
HUES_PER_RING = 450
"""Hues that 8 bits tell apart at that saturation; larger panels take further rings of higher saturation."""


def gene_colours(palette: Any, genes: tuple[str, ...]) -> np.ndarray:
    """A colour per gene: of a mapping, or hues in the genes' order.

    Parameters
    ----------
    palette
        ``"permuted"`` or ``"fixed"``, or a mapping of gene to a colour that matplotlib knows.
    genes
        What is coloured.

    Returns
    -------
    Float32 of shape (genes, 3), 0 to 255.

    Raises
    ------
    KeyError
        If a gene is not in the mapping.
    ValueError
        If the palette is unknown.
    """
    from matplotlib.colors import to_rgb

    if not isinstance(palette, str):
        palette = dict(palette)
        missing = [gene for gene in genes if gene not in palette]
        if missing:
            msg = (
                f"{len(missing)} of {len(genes)} genes have no colour in palette=, the first of them {missing[0]!r}; add "
                "them, or name the genes to draw with genes=."
            )
            raise KeyError(msg)
        return np.array([to_rgb(palette[gene]) for gene in genes], np.float32).reshape(-1, 3) * 255
    if palette not in {"permuted", "fixed"}:
        msg = f"palette is {palette!r}; it is 'permuted', 'fixed', or a mapping of gene to colour."
        raise ValueError(msg)
    return hues(len(genes))


def hues(n: int) -> np.ndarray:
    """Colours of evenly spaced, ascending hue, all distinct in 8 bits.

    Parameters
    ----------
    n
        How many.

    Returns
    -------
    Float32 of shape (n, 3), whole numbers from 0 to 255.
    """
    from matplotlib.colors import hsv_to_rgb

    rings = max(1, -(-n // HUES_PER_RING))
    saturation = SATURATION + (1 - SATURATION) * (np.arange(n) % rings) / rings
    # Hues are a circle: in several rings, the last one must not meet the first.
    turn = max(1, n if rings == 1 else n + rings)
    hsv = np.stack([np.arange(n) / turn, saturation, np.full(n, VALUE)], -1)
    return np.round(hsv_to_rgb(hsv) * 255).astype(np.float32).reshape(-1, 3)
