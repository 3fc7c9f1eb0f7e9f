"""Two views of each crop of a cell: a function of numbers that are drawn before, of a whole batch at once.

After the first policy of sCellST (external/cell_SSL): colours, a rotation by any angle whose corners come from the
margin of the crop, a part of what is then in view, blur, an erased rectangle; and, as an option, the amounts of
haematoxylin and eosin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch.nn.functional import affine_grid, conv2d, grid_sample, pad

DRAWN = (
    *("jitter", "brightness", "contrast", "saturation", "hue", "order"),
    *("angle", "area", "ratio", "x", "y", "blur", "sigma"),
    *("erase", "erased_area", "erased_ratio", "erased_x", "erased_y", "haematoxylin", "eosin"),
)
"""What is drawn for each view of each crop, from 0 to 1."""

GREY = (0.299, 0.587, 0.114)
ORDERS = torch.tensor(list(permutations(range(4))))
BLUR_RADIUS = 6


@dataclass(frozen=True)
class CellAugmentation:
    """How strongly crops of cells are changed.

    Attributes
    ----------
    jitter
        Probability that colours change.
    brightness, contrast, saturation, hue
        Largest relative change of each; of the hue, part of the circle.
    rotate
        Whether crops are turned, by any angle.
    least_area, most_ratio
        Least part of the view that is kept and enlarged, and its most uneven ratio of sides.
    blur, blur_px
        Probability, and least and largest standard deviation.
    erase, erased_area, erased_ratio
        Probability, part of the view, and ratio of sides, least and most of each.
    stain
        Standard deviation of the factors by which haematoxylin and eosin are multiplied; 0 leaves them.
    """

    jitter: float = 0.8
    brightness: float = 0.6
    contrast: float = 0.7
    saturation: float = 0.5
    hue: float = 0.2
    rotate: bool = True
    least_area: float = 0.6
    most_ratio: float = 4 / 3
    blur: float = 0.1
    blur_px: tuple[float, float] = (0.1, 2.0)
    erase: float = 0.3
    erased_area: tuple[float, float] = (0.05, 0.15)
    erased_ratio: tuple[float, float] = (0.8, 1.2)
    stain: float = 0.0


def draw_views(n: int, seed: int, epoch: int, n_views: int = 2) -> np.ndarray:
    """Numbers for the views of n crops, (n, n_views, d) float32 from 0 to 1: each of seed, epoch and its place alone.

    Parameters
    ----------
    n
        Number of crops; those of the first are the same, however many follow.
    seed, epoch
        What they depend on.
    n_views
        Views of each.
    """
    return np.random.default_rng([seed, epoch]).random((n, n_views, len(DRAWN)), np.float32)


def augment_cells(
    crops: Any, drawn: Any, px: int, how: CellAugmentation | None = None, *, stains: np.ndarray | None = None
) -> Any:
    """One view of each crop.

    Parameters
    ----------
    crops
        (n, side, side, 3) uint8; a side of 1.5 ``px`` holds all that a rotation brings into view.
    drawn
        (n, d) from 0 to 1: one view of :func:`draw_views`.
    px
        Side of the view, at the scale of the crop.
    how
        How strongly; by default as published.
    stains
        (2, 3) unit vectors of haematoxylin and eosin in optical density, where ``how.stain`` is not 0.

    Returns
    -------
    (n, 3, px, px) float32 from 0 to 1, where the crops are.
    """
    how = how or CellAugmentation()
    u = dict(zip(DRAWN, drawn.unbind(1), strict=True))
    views = turned_and_cropped(crops, u, px, how)
    if how.stain:
        views = restained(views, u, how.stain, stains)
    views = recoloured(views, u, how)
    return erased(blurred(views, u, how), u, how)


def turned_and_cropped(crops: Any, u: dict[str, Any], px: int, how: CellAugmentation) -> Any:
    """Turned about the middle, and a part of the middle enlarged to the whole view, in one interpolation."""
    images = crops.permute(0, 3, 1, 2).float() / 255
    n, side = len(images), images.shape[-1]
    angle = 2 * math.pi * u["angle"] if how.rotate else torch.zeros_like(u["angle"])
    area = how.least_area + (1 - how.least_area) * u["area"]
    ratio = torch.exp((2 * u["ratio"] - 1) * math.log(how.most_ratio))
    # torchvision draws again where a side is longer than the view; here it is as long.
    width, height = (torch.sqrt(area * ratio)).clamp(max=1), (torch.sqrt(area / ratio)).clamp(max=1)
    x, y = (1 - width) * (2 * u["x"] - 1), (1 - height) * (2 * u["y"] - 1)
    cos, sin, zoom = torch.cos(angle), torch.sin(angle), px / side
    theta = zoom * torch.stack(
        [
            torch.stack([cos * width, -sin * height, cos * x - sin * y], 1),
            torch.stack([sin * width, cos * height, sin * x + cos * y], 1),
        ],
        1,
    )
    grid = affine_grid(theta, [n, 3, px, px], align_corners=False)
    return grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def restained(views: Any, u: dict[str, Any], spread: float, stains: Any) -> Any:
    """Amounts of haematoxylin and eosin multiplied by factors around 1; what is neither stays."""
    if stains is None:
        raise ValueError("Stain jitter needs the stain vectors, (2, 3).")
    vectors = np.vstack([stains, np.cross(*stains) / np.linalg.norm(np.cross(*stains))])
    to_amounts, to_density = (
        torch.tensor(each, dtype=views.dtype, device=views.device) for each in (np.linalg.inv(vectors), vectors)
    )
    normal = torch.special.ndtri(torch.stack([u["haematoxylin"], u["eosin"]], 1).clamp(1e-4, 1 - 1e-4))
    factors = torch.cat([(1 + spread * normal).clamp(min=0), torch.ones_like(normal[:, :1])], 1)
    change = to_amounts @ (factors[:, :, None] * to_density)
    density = -torch.log(views.clamp(min=1 / 255))
    return torch.exp(-torch.einsum("nchw,ncd->ndhw", density, change)).clamp(0, 1)


def recoloured(views: Any, u: dict[str, Any], how: CellAugmentation) -> Any:
    """Brightness, contrast, saturation and hue, each crop in an order of its own."""
    views = views.clone()
    order = ORDERS.to(views.device)[(u["order"] * len(ORDERS)).long().clamp(max=len(ORDERS) - 1)]
    on = u["jitter"] < how.jitter
    for step in range(order.shape[1]):
        for kind, (name, change) in enumerate(COLOURS.items()):
            rows = torch.nonzero(on & (order[:, step] == kind))[:, 0]
            strength = getattr(how, name)
            if len(rows) and strength:
                amount = strength * (2 * u[name][rows] - 1)
                views[rows] = change(views[rows], amount[:, None, None, None])
    return views


def _brighter(views: Any, amount: Any) -> Any:
    return (views * (1 + amount)).clamp(0, 1)


def _grey(views: Any) -> Any:
    r, g, b = GREY
    return r * views[:, :1] + g * views[:, 1:2] + b * views[:, 2:]


def _more_contrast(views: Any, amount: Any) -> Any:
    mean = _grey(views).mean(dim=(1, 2, 3), keepdim=True)
    return (mean + (views - mean) * (1 + amount)).clamp(0, 1)


def _more_saturated(views: Any, amount: Any) -> Any:
    grey = _grey(views)
    return (grey + (views - grey) * (1 + amount)).clamp(0, 1)


def _other_hue(views: Any, amount: Any) -> Any:
    """Hue turned by a part of the circle; value and saturation stay."""
    value, largest = views.max(dim=1)
    chroma = value - views.min(dim=1).values
    r, g, b = views.unbind(1)
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    sector = torch.stack([(g - b) / safe, 2 + (b - r) / safe, 4 + (r - g) / safe], 1)
    hue = sector.gather(1, largest[:, None]) + 6 * amount
    k = (torch.tensor([5.0, 3.0, 1.0], device=views.device)[None, :, None, None] + hue) % 6
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


COLOURS = {"brightness": _brighter, "contrast": _more_contrast, "saturation": _more_saturated, "hue": _other_hue}


def blurred(views: Any, u: dict[str, Any], how: CellAugmentation) -> Any:
    """Some views are blurred, each by a width of its own."""
    rows = torch.nonzero(u["blur"] < how.blur)[:, 0]
    if not len(rows):
        return views
    least, most = how.blur_px
    sigma = least + (most - least) * u["sigma"][rows]
    radius = min(BLUR_RADIUS, views.shape[-1] - 1)
    steps = torch.arange(-radius, radius + 1, device=views.device, dtype=views.dtype)
    kernel = torch.exp(-0.5 * (steps / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(3, dim=0)
    planes = views[rows].flatten(0, 1)[None]
    planes = pad(planes, (radius,) * 4, mode="reflect")
    planes = conv2d(planes, kernel[:, None, None, :], groups=len(kernel))
    planes = conv2d(planes, kernel[:, None, :, None], groups=len(kernel))
    out = views.clone()
    out[rows] = planes[0].unflatten(0, (len(rows), 3))
    return out


def erased(views: Any, u: dict[str, Any], how: CellAugmentation) -> Any:
    """A rectangle of some views is black."""
    side = views.shape[-1]
    (least, most), (low, high) = how.erased_area, how.erased_ratio
    area = least + (most - least) * u["erased_area"]
    ratio = torch.exp(math.log(low) + (math.log(high) - math.log(low)) * u["erased_ratio"])
    on = u["erase"] < how.erase
    place = torch.arange(side, device=views.device) + 0.5

    def covered(length: Any, where: Any) -> Any:
        start = where * (side - length)
        return (place >= start[:, None]) & (place < (start + length)[:, None])

    columns = covered(side * torch.sqrt(area * ratio), u["erased_x"])
    rows = covered(side * torch.sqrt(area / ratio), u["erased_y"])
    hidden = on[:, None, None] & rows[:, :, None] & columns[:, None, :]
    return views.masked_fill(hidden[:, None], 0.0)
