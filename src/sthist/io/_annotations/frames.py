"""The frame in which something was drawn, and whether that fits the sample's images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import _sample, scale
from sthist._settings import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from spatialdata import SpatialData

Box = tuple[float, float, float, float]

MARGIN = 0.02  # part of a box that something may reach beyond it and still look as if it lay in it


@dataclass(frozen=True)
class Frame:
    """Units and place of coordinates."""

    unit: str  # "px" of the image, or "um"
    image: str | None  # key of the image; None for micrometres of no image in particular
    box: Box | None  # x0, y0, x1, y1 of what may be drawn on, in unit; None where that is not known
    transformations: dict[str, Any]  # from there, by coordinate system
    to_um: np.ndarray | None  # (3, 3): from there to µm; None where the image has no scale

    @classmethod
    def of(cls, sdata: SpatialData, path: Path, image: str | None, unit: str) -> Frame:
        """The frame of a file, by its unit."""
        from spatialdata.transformations import Affine, Identity, get_transformation

        if image is not None:
            _sample.get(sdata, "images", image)
        if unit == "um":
            return cls("um", image, _box_um(sdata, image), {_sample.UM: Identity()}, np.eye(3))
        if image is None:
            if len(sdata.images) != 1:
                raise ValueError(
                    f"{path} is in pixels, but of which image? {_sample.describe('images', sdata.images)} Name the one "
                    "that it was "
                    'drawn on with image=; or pass unit="um".'
                )
            image = next(iter(sdata.images))
        element = sdata.images[image]
        matrices = {name: scale.matrix_to(element, name) for name in get_transformation(element, get_all=True)}
        return cls(
            "px",
            image,
            _box_px(element),
            {name: Affine(matrix, ("x", "y"), ("x", "y")) for name, matrix in matrices.items()},
            matrices.get(_sample.UM),
        )

    def circle(self, diameter_um: float | None) -> Callable[[Any], Any] | None:
        """What makes a circle of a point, in the frame's unit; None for no diameter."""
        import shapely

        if diameter_um is None:
            return None
        if self.to_um is None:
            raise ValueError(
                f"Image {self.image!r} has no scale, which point_diameter_um needs: give it once with pp.set_scale."
            )
        linear = np.linalg.inv(self.to_um[:2, :2])
        round_one = shapely.transform(shapely.Point(0, 0).buffer(diameter_um / 2), lambda xy: xy @ linear.T)
        return lambda point: shapely.transform(round_one, lambda xy: xy + [point.x, point.y])


def size_px(element: Any) -> tuple[int, int]:
    """Width and height of an image at full resolution."""
    from xarray import DataTree

    level = next(iter(element["scale0"].data_vars.values())) if isinstance(element, DataTree) else element
    return int(level.sizes["x"]), int(level.sizes["y"])


def _box_px(element: Any) -> Box:
    width, height = size_px(element)
    return 0.0, 0.0, float(width), float(height)


def _box_um(sdata: SpatialData, image: str | None) -> Box | None:
    """The box around an image in µm, or around all that have a scale."""
    from spatialdata.transformations import get_transformation

    corners = []
    for name in sdata.images if image is None else [image]:
        element = sdata.images[name]
        if _sample.UM in get_transformation(element, get_all=True):
            width, height = size_px(element)
            there = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]])
            corners.append(there @ scale.matrix_to(element)[:2].T)
    if not corners:
        return None
    low, high = np.concatenate(corners).min(0), np.concatenate(corners).max(0)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def require_on_image(sdata: SpatialData, path: Path, shapes: Sequence[Any], names: Sequence[Any], frame: Frame) -> None:
    """Refuse shapes of which none lies on the image; say which ones do not."""
    import shapely

    if frame.box is None:
        return
    bounds = shapely.bounds(np.array(shapes, dtype=object))
    x0, y0, x1, y1 = frame.box
    off = (bounds[:, 2] <= x0) | (bounds[:, 0] >= x1) | (bounds[:, 3] <= y0) | (bounds[:, 1] >= y1)
    on_what = f"image {frame.image!r}" if frame.image is not None else "the sample's images"
    if off.all():
        box = (*bounds[:, :2].min(0).tolist(), *bounds[:, 2:].max(0).tolist())
        unit = "µm" if frame.unit == "um" else "px"
        raise ValueError(
            f"{path}: all {len(off)} outlines lie outside of {on_what}: their coordinates span {_shown(box)} {unit}, "
            f"the image spans {_shown(frame.box)} {unit}. {_guess(sdata, box, frame)}"
        )
    if off.any():
        logger.warning(
            f"{path}: {off.sum()} of {len(off)} outlines lie outside of {on_what}, such as "
            f"{names[int(off.argmax())]!r}."
        )


def _guess(sdata: SpatialData, box: Box, frame: Frame) -> str:
    """In which other frame a box would lie on an image."""
    if frame.unit == "px":
        um = _box_um(sdata, frame.image)
        if um is not None and _lies_in(box, um):
            return "They look like micrometres taken for pixels: pass unit='um'."
    fitting = [
        name
        for name, element in sdata.images.items()
        if (frame.unit == "um" or name != frame.image) and _lies_in(box, _box_px(element))
    ]
    if fitting and frame.unit == "um":
        return (
            f"They look like pixels taken for micrometres: they would lie on {fitting[0]!r}. Pass unit='px', "
            f"image={fitting[0]!r}."
        )
    if fitting:
        return f"They would lie on {fitting[0]!r}: pass image={fitting[0]!r}."
    return "Were they drawn on another image, or on a copy of another size?"


def _lies_in(box: Box, around: Box) -> bool:
    margin = MARGIN * max(around[2] - around[0], around[3] - around[1])
    return (
        box[0] >= around[0] - margin
        and box[1] >= around[1] - margin
        and box[2] <= around[2] + margin
        and box[3] <= around[3] + margin
    )


def _shown(box: Box) -> str:
    return f"x {box[0]:.6g} to {box[2]:.6g}, y {box[1]:.6g} to {box[3]:.6g}"
