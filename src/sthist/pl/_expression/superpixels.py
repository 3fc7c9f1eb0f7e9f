"""Maps of genes that are images: expression of every place of a slide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample, scale
from sthist._messages import listed
from sthist._settings import logger
from sthist._tables.expression import log_expression
from sthist._tables.find import called, find_expression
from sthist._tables.genes import closest
from sthist.metrics._expression.maps import pitch_of
from sthist.pl._base import add_scale_bar, draw_dots, finish, make_axes, show_image
from sthist.pl._colours import limit
from sthist.pl._expression.found import CALL, find_prediction
from sthist.tiles._images.image import pyramid

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

SHOWN_PX = 1024
"""Side of the level of a map that is drawn, at most, if there is such a level."""


def map_meant(data: Any, keys: list[str | None], table: str | None) -> str | None:
    """The image that is meant: of this name, or the only one where no table has predictions; None for none."""
    images = getattr(data, "images", {})
    made = [name for name in images if _made(data, name).get("call") == CALL]
    if table is not None or len(keys) != 1 or not made:
        return None
    if keys[0] is not None:
        return keys[0] if keys[0] in images else None
    try:
        find_prediction(data, None, None)
    except KeyError:
        if len(made) > 1:
            raise ValueError(f"There are several predictions: {listed(made)}. Name one with key=.") from None
        return made[0]
    except ValueError:  # several tables have some, which is said where they are looked for
        return None
    return None


def _made(data: Any, name: str) -> dict[str, Any]:
    found = data.attrs.get("sthist", {}).get("results", {}).get(name, {})
    return dict(found) if hasattr(found, "get") else {}


def draw_map(
    data: Any,
    genes: list[str],
    key: str,
    *,
    cmap: str,
    vmin: float | str | None,
    vmax: float | str | None,
    axes: Any,
    save: str | Path | None,
) -> list[Axes]:
    """Genes where they were measured, and as an image shows them."""
    names = _sample.channel_names(data.images[key])
    missing = [gene for gene in genes if gene not in names]
    if missing:
        raise KeyError(
            f"images[{key!r}] has no gene {missing[0]!r}; it has {len(names)} genes.{closest(missing[0], names)}"
        )
    levels = pyramid(data.images[key])
    level = next((each for each in levels if max(each.sizes["y"], each.sizes["x"]) <= SHOWN_PX), levels[-1])
    matrix = scale.matrix_to_um(data, "images", key)
    height, width = levels[0].sizes["y"], levels[0].sizes["x"]
    (x0, y0), (x1, y1) = (matrix[:2] @ np.array([[0, width], [0, height], [1, 1]])).T.tolist()
    extent = (x0, y0, x1, y1)
    made, measured = _made(data, key), _measured(data, genes)
    model = str(made.get("model", key))
    panels = [*(["measured"] if measured is not None else []), model]
    drawn = make_axes(len(genes) * len(panels), len(panels), extent, axes, [name for _ in genes for name in panels])
    for row, gene in enumerate(genes):
        own = drawn[row * len(panels) : (row + 1) * len(panels)]
        pixels = np.asarray(level.data[names.index(gene)], np.float32)
        values = pixels if measured is None else np.concatenate([pixels.ravel(), measured[1][:, row]])
        known = values[np.isfinite(values)]
        if not len(known):
            raise ValueError(f"images[{key!r}] has no value of {gene!r} anywhere.")
        low, high = limit(vmin, known, "p0"), limit(vmax, known, "p100")
        high = max(high, low + 1e-6)
        if measured is not None:
            places, truth = measured
            draw_dots(
                own[0], places, truth[:, row], pitch_of(places), extent, "measured", cmap=cmap, low=low, high=high
            )
        show_image(own[-1], pixels, extent, "", cmap=cmap, vmin=low, vmax=high)
        own[-1].set_title(model, fontsize="medium")
        own[0].set_ylabel(_label(gene, made, names), fontsize="medium")
        own[0].figure.colorbar(own[-1].images[0], ax=own[-1], label="log expression", shrink=0.8)
        add_scale_bar(own[-1], extent, "black")
    return finish(drawn, save)


def _measured(data: Any, genes: list[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """Places of what was measured, and log expression there, NaN for genes that were not; None for nothing."""
    try:
        key, adata = find_expression(data, None)
        logs = log_expression(adata, called(key))
        places = np.asarray(adata.obsm["spatial"], np.float64)[:, :2]
    except (KeyError, ValueError) as error:
        logger.info("Nothing is known of what was measured: %s", error)
        return None
    values = np.full((adata.n_obs, len(genes)), np.nan)
    columns = adata.var_names.get_indexer(genes)
    for place, column in enumerate(columns):
        if column >= 0:
            values[:, place] = logs[:, [column]].toarray().ravel()
    there = np.isfinite(places).all(axis=1)
    return (places[there], values[there]) if there.sum() > 1 and (columns >= 0).any() else None


def _label(gene: str, made: dict[str, Any], names: list[str]) -> str:
    """A gene, and how it did where it was held out."""
    scores = made.get("scores", {}).get("pearson", [])
    if len(scores) != len(names):
        return gene
    score = scores[names.index(gene)]
    return f"{gene}\nnot scored" if score is None else f"{gene}\nheld out r = {score:.2f}"
