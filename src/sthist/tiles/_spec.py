"""How much tissue a tile shows, and on how many pixels."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sthist import scale

if TYPE_CHECKING:
    from collections.abc import Iterator


class TooFine(ValueError):
    """Tiles are finer than what an image shows; ``problem`` says so, ``coarser`` is the call of a spec that is not."""

    def __init__(self, problem: str, spec: TileSpec, mpp: float) -> None:
        self.problem = problem
        self.coarser = f"sthist.tiles.TileSpec({spec.size_um:g}, {max(1, math.floor(spec.size_um / mpp))})"
        super().__init__(f"{problem} Ask for {self.coarser}, or pass allow_upsampling=True to go on.")


@contextmanager
def coarser_by(advice: str) -> Iterator[None]:
    """Say how a verb that does not upsample is asked for coarser tiles; ``{}`` in the advice is their spec."""
    try:
        yield
    except TooFine as error:
        raise ValueError(f"{error.problem} {advice.format(error.coarser)}") from None


def same_spec(one: TileSpec, other: TileSpec) -> bool:
    """Whether tiles are the same, up to rounding."""
    return one.px == other.px and abs(one.size_um / other.size_um - 1) < 1e-6


def same_scale(one: TileSpec, other: TileSpec) -> bool:
    """Whether tiles show as much tissue, on as many pixels per µm, within 2 %."""
    return max(abs(one.size_um / other.size_um - 1), abs(one.mpp / other.mpp - 1)) <= scale.TOLERANCE


@dataclass(frozen=True)
class TileSpec:
    """A square tile of fixed physical size.

    Saved inside every model, so that a model is never applied at another physical scale by accident.

    Parameters
    ----------
    size_um
        Side of the tile in micrometres.
    px
        Side of the tile in pixels.

    Raises
    ------
    ValueError
        If ``size_um`` is not a positive number or ``px`` not a positive integer.

    Examples
    --------
    >>> import sthist
    >>> sthist.tiles.TileSpec(size_um=112.0, px=224).mpp
    0.5
    """

    size_um: float
    px: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.size_um) and self.size_um > 0):
            raise ValueError(f"TileSpec: size_um is {self.size_um!r}; a tile needs a positive size in micrometres.")
        if int(self.px) != self.px or self.px < 1:
            raise ValueError(f"TileSpec: px is {self.px!r}; a tile needs a whole, positive number of pixels.")
        object.__setattr__(self, "size_um", float(self.size_um))
        object.__setattr__(self, "px", int(self.px))

    @classmethod
    def from_mpp(cls, mpp: float, px: int) -> TileSpec:
        """The spec of a tile of ``px`` pixels at ``mpp`` micrometres per pixel."""
        return cls(size_um=mpp * px, px=px)

    @property
    def mpp(self) -> float:
        """Micrometres per pixel."""
        return self.size_um / self.px

    @property
    def text(self) -> str:
        """Size, pixels and µm per pixel, as messages show them."""
        return f"{self.size_um:.4g} µm on {self.px} px ({self.mpp:.4g} µm/px)"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)
