"""The stain of a section in a few numbers, to be measured, stored and shared."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np

from sthist import stains
from sthist._disk import written_whole
from sthist._reading import parse_json
from sthist.pp._stain_normalize.pixels import StainPixels, pixels_of

if TYPE_CHECKING:
    from typing import Self

Method = Literal["macenko", "reinhard", "channels"]
Triple = tuple[float, float, float]

FIELDS: dict[str, dict[str, tuple[int, ...]]] = {
    "macenko": {"white": (3,), "vectors": (2, 3), "amounts": (2,)},
    "reinhard": {"white": (3,), "mean": (3,), "spread": (3,)},
    "channels": {"white": (3,), "mean": (3,), "spread": (3,)},
}
"""What each method measures, and the shape of it."""

POSITIVE = ("white", "amounts", "spread", "mean_amounts")

STRONG = 99
"""Percentile of a stain's amount that stands for its strength."""

MIN_ANGLE = 8.0
"""Degrees between haematoxylin and eosin; in real sections there are 17 to 32, in a picture of one stain its noise."""

MIN_PIXELS = 100


class JSONFile:
    """Values that are kept as a JSON file, which says of what kind they are."""

    kind: ClassVar[str]

    def save(self, path: str | Path) -> None:
        """Write it to a JSON file.

        Parameters
        ----------
        path
            Of the file.
        """
        write_json(path, self.kind, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read it from a JSON file.

        Parameters
        ----------
        path
            Of the file.

        Raises
        ------
        FileNotFoundError, ValueError
            If there is no such file, or it is of another kind.
        """
        return cls.from_dict(read_json(path, cls.kind))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        raise NotImplementedError

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """What :meth:`to_dict` wrote."""
        raise NotImplementedError


@dataclass(frozen=True)
class StainReference(JSONFile):
    """The stain of a section in a few numbers: what another section is normalised to.

    It is measured with :meth:`fit`, kept as a small JSON file with :meth:`save`, and read back with :meth:`load`; the
    built-in ones are :meth:`default`. All fields are plain values.

    Parameters
    ----------
    method
        ``"macenko"``, ``"reinhard"`` or ``"channels"``.
    white
        Grey level of glass in red, green and blue.
    vectors
        For Macenko: unit vectors of haematoxylin and of eosin, optical densities (base e) of red, green and blue.
    amounts
        For Macenko: 99th percentile of the amount of each over the stained pixels.
    mean_amounts
        For Macenko: mean of the amount of each over the stained pixels, where it is known; a model of stains goes by
        it for eosin, of which the strongest is blood as often as it is tissue.
    mean, spread
        For Reinhard: mean and standard deviation of the stained pixels' l, alpha and beta
        (:func:`sthist.stains.ruderman_lab`). For channels: of their red, green and blue, 0 to 255.
    origin
        Where the numbers come from.

    Raises
    ------
    ValueError
        If a number is missing, is NaN or cannot be, or the method is unknown.

    Examples
    --------
    >>> import tempfile, pathlib, sthist
    >>> reference = sthist.pp.StainReference.fit(sthist.datasets.toy(size_um=300))
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "reference.json"
    >>> reference.save(path)
    >>> sthist.pp.StainReference.load(path) == reference
    True
    """

    kind = "stain reference"

    method: Method
    white: Triple
    vectors: tuple[Triple, Triple] | None = None
    amounts: tuple[float, float] | None = None
    mean: Triple | None = None
    spread: Triple | None = None
    origin: str = ""
    mean_amounts: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        require_method(self.method)
        known = {"mean_amounts": (2,)} if self.mean_amounts is not None else {}
        for name, shape in (FIELDS[self.method] | known).items():
            values = _numbers(self, name, shape)
            if values.min() < 0 and name != "mean" or name in POSITIVE and values.min() == 0:
                raise ValueError(
                    f"StainReference: {name} is {getattr(self, name)!r}; it is "
                    f"{'positive' if name in POSITIVE else 'not negative'}."
                )
            object.__setattr__(self, name, _plain(values))
        if self.method == "macenko" and np.abs(np.linalg.norm(self.stains, axis=1) - 1).max() > 0.01:
            raise ValueError(f"StainReference: vectors are {self.vectors!r}; each has the length 1.")

    def __repr__(self) -> str:
        if self.method == "macenko":
            names = ("haematoxylin", "eosin")
            parts = zip(names, self.stains, self.amounts or (), strict=True)
            numbers = ", ".join(f"{name} {_short(vector)} up to {amount:.2f}" for name, vector, amount in parts)
        else:
            numbers = f"mean {_short(self.mean)}, spread {_short(self.spread)}"
        glass = "" if self.method == "channels" else f", glass {_short(self.white)}"
        return f"StainReference by {self.method} of {self.origin or 'a section'}: {numbers}{glass}"

    @property
    def stains(self) -> np.ndarray:
        """Vectors of haematoxylin and eosin, float64 of shape (2, 3)."""
        return np.array(self.vectors, np.float64)

    @classmethod
    def fit(
        cls,
        data: Any,
        image: str | None = None,
        *,
        method: Method = "macenko",
        within: Any = None,
        n_tiles: int = 200,
        mpp: float = 1.0,
        white: float | Triple | None = None,
        seed: int | None = None,
    ) -> StainReference:
        """Measure the stain of a section.

        Parameters
        ----------
        data
            One sample; or an (h, w, 3) uint8 array, of which all is seen.
        image, method, within, n_tiles, mpp, white, seed
            As of :func:`sthist.pp.stain_normalize`.

        Raises
        ------
        KeyError, ValueError
            As of :func:`sthist.pp.stain_normalize`.
        """
        require_method(method)
        sample = pixels_of(data, image, within=within, n_tiles=n_tiles, mpp=mpp, white=white, seed=seed)
        density = stains.optical_density(sample.pixels, np.array(sample.white))
        stained = sample.pixels[(density > stains.TISSUE_OD).any(1)]
        if len(stained) < MIN_PIXELS:
            raise ValueError(
                f"Only {len(stained)} of {len(density)} pixels of {sample.origin} are stained (optical density above "
                f"{stains.TISSUE_OD}, glass is {sample.white}); at least {MIN_PIXELS} are needed. Is this an H&E image?"
            )
        return _macenko(stained, sample) if method == "macenko" else _mean_and_spread(stained, sample, method)

    @classmethod
    def default(cls, method: Method = "macenko") -> StainReference:
        """A built-in reference.

        Parameters
        ----------
        method
            For ``"macenko"``, the target that M. Veta's implementation of the method ships, and torchstain and others
            after it. For ``"reinhard"``, the region of slide TCGA-A2-A3XS-DX1 that Amgad et al. 2019 normalised their
            breast cancer sections to, as HistomicsTK states it. For ``"channels"``, the photographs of ImageNet.
        """
        require_method(method)
        return DEFAULTS[method]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; without those that are of another method."""
        return {name: value for name, value in json.loads(json.dumps(asdict(self))).items() if value is not None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StainReference:
        """The reference that :meth:`to_dict` wrote.

        Parameters
        ----------
        values
            Of it.
        """
        unknown = set(values) - set(cls.__dataclass_fields__)
        if unknown or not {"method", "white"} <= set(values):
            raise ValueError(f"These are not the values of a stain reference: {sorted(values)}.")
        return cls(**values)


def of_channels(mean: Any, spread: Any, origin: str) -> StainReference:
    """A reference of red, green and blue, 0 to 255, by mean and standard deviation of each."""
    r, g, b = (float(value) for value in mean)
    x, y, z = (float(value) for value in spread)
    return StainReference("channels", (255.0, 255.0, 255.0), mean=(r, g, b), spread=(x, y, z), origin=origin)


def require_method(method: str) -> None:
    """Refuse a method that there is not."""
    if method not in FIELDS:
        hint = ""
        if method == "vahadane":
            hint = (
                " Vahadane's is left out: it needs a solver of sparse dictionaries that is archived, experimental or "
                "known to change colours from version to version."
            )
        raise ValueError(f"method is {method!r}; there are {', '.join(map(repr, FIELDS))}.{hint}")


def write_json(path: str | Path, kind: str, values: dict[str, Any]) -> None:
    """Write values to a file that says what they are."""
    with written_whole(Path(path)) as partial:
        content = {"sthist": kind, "version": 1, **values}
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False), "utf-8")


def read_json(path: str | Path, kind: str) -> dict[str, Any]:
    """The values of a file of :func:`write_json`."""
    values = parse_json(path)
    found = values.pop("sthist", None) if isinstance(values, dict) else None
    if found != kind:
        raise ValueError(
            f"{path} is not a {kind} of sthist: {'it is a ' + str(found) if found else 'it does not say what it is'}."
        )
    if values.pop("version", None) != 1:
        raise ValueError(f"{path} was written by a later version of sthist.")
    return dict(values)


def _macenko(stained: np.ndarray, sample: StainPixels) -> StainReference:
    white = np.array(sample.white)
    try:
        vectors = stains.macenko(stained, white=white)
    except ValueError as error:
        raise ValueError(f"Of {sample.origin}: {error}") from None
    angle = float(np.rad2deg(np.arccos(np.clip(vectors[0] @ vectors[1], -1, 1))))
    # Not clipped at 0, as stains.concentrations is: the percentile is the same, and a stain that is not there shows.
    of_pixels = stains.optical_density(stained, white) @ np.linalg.pinv(vectors)
    amounts = np.percentile(of_pixels, STRONG, axis=0)
    if angle < MIN_ANGLE or amounts.min() <= 0:
        raise ValueError(
            f"{sample.origin} shows one stain only: the two that differ most are {angle:.1f} degrees apart, and at "
            f"least {MIN_ANGLE:g} are needed. Is this an H&E image in colour? method='reinhard' needs no two stains."
        )
    pair = cast("tuple[Triple, Triple]", _plain(vectors))
    means = of_pixels.clip(0).mean(0)
    return StainReference(
        "macenko",
        sample.white,
        vectors=pair,
        amounts=tuple(amounts.tolist()),
        mean_amounts=tuple(means.tolist()),
        origin=sample.origin,
    )


def _mean_and_spread(stained: np.ndarray, sample: StainPixels, method: Method) -> StainReference:
    colours = stains.ruderman_lab(stained) if method == "reinhard" else stained.astype(np.float64)
    mean, spread = colours.mean(0), colours.std(0)
    if spread.min() < 1e-3:
        raise ValueError(
            f"{sample.origin} is of one colour, or grey: its spread is {spread.round(4).tolist()}. Is this an H&E "
            "image?"
        )
    return StainReference(
        method, sample.white, mean=tuple(mean.tolist()), spread=tuple(spread.tolist()), origin=sample.origin
    )


def _numbers(reference: StainReference, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A field as an array, checked."""
    try:
        values = np.array(getattr(reference, name), np.float64)
    except (TypeError, ValueError):
        values = np.array(np.nan)
    if values.shape != shape or not np.isfinite(values).all():
        raise ValueError(
            f"StainReference of method {reference.method!r}: {name} is {getattr(reference, name)!r}; it is "
            f"{' x '.join(map(str, shape))} finite numbers."
        )
    return values


def _short(values: Any) -> str:
    """Numbers in three digits."""
    return f"({', '.join(f'{value:.3g}' for value in values)})"


def _plain(values: np.ndarray) -> tuple[Any, ...]:
    return tuple(tuple(row) if isinstance(row, list) else row for row in values.tolist())


DEFAULTS: dict[str, StainReference] = {
    "macenko": StainReference(
        "macenko",
        (240.0, 240.0, 240.0),
        vectors=((0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581)),
        amounts=(1.9705, 1.0308),
        origin="the target of M. Veta's implementation of Macenko et al. 2009, which torchstain has, too",
    ),
    "reinhard": StainReference(
        "reinhard",
        (255.0, 255.0, 255.0),
        mean=(8.74108109, -0.12440419, 0.0444982),
        spread=(0.6135447, 0.10989545, 0.0286032),
        origin="a region of slide TCGA-A2-A3XS-DX1 (Amgad et al. 2019), as HistomicsTK states it",
    ),
    "channels": StainReference(
        "channels",
        (255.0, 255.0, 255.0),
        mean=(123.675, 116.28, 103.53),
        spread=(58.395, 57.12, 57.375),
        origin="the photographs of ImageNet",
    ),
}
