"""What every encoder has: a name, a size, the tile that it is meant for, and ``embed``; and several side by side."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist import scale
from sthist._sample.elements import safe_key
from sthist._settings import logger
from sthist._store import content_of
from sthist.tiles import TileSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import pandas as pd

SAME_SIZE = 1e-3  # sizes of tiles that differ by less, of the larger one, are one size
PROBE_PX = 224  # side of the blank tile that tells the size of an embedding, where nothing else does


class Encoder(ABC):
    """Base of the encoders: tiles in, one row of numbers per tile out.

    A class of its own needs :meth:`embed` alone; everything else has a default.

    Attributes
    ----------
    name : str
        As the user typed it, such as ``"timm:resnet18"``.
    spec : TileSpec or None
        The tile that it was trained for; None where any scale is as good.
    feature_names : list of str or None
        Of each dimension, where they mean something.
    token_names : list of str or None
        Of each dimension of :meth:`dense`, where they mean something.
    provenance : dict
        JSON values: source, hub id, revision, SHA-256 of the weights, licence, transform.
    logit_scale : float or None
        Factor between cosine similarity and logit of an image-text model.
    can_dense, can_text : bool
        Whether :meth:`dense` and :meth:`embed_text` are there.
    module : torch.nn.Module or None
        Float images (n, 3, px, px) that ``transform`` has prepared to embeddings (n, d), for training on; None where
        gradients cannot pass.
    transform : Transform or None
        How pixels become the input of ``module``.

    Examples
    --------
    >>> import numpy as np, sthist
    >>> class MeanColour(sthist.encoders.Encoder):
    ...     name = "mean-colour"
    ...
    ...     def embed(self, tiles):
    ...         return tiles.mean((1, 2), dtype=np.float32)
    >>> encoder = MeanColour()
    >>> encoder.embed(np.full((2, 8, 8, 3), 7, np.uint8)).shape, encoder.dim, encoder.key
    ((2, 3), 3, 'X_mean-colour')
    """

    name: str
    spec: TileSpec | None = None
    feature_names: list[str] | None = None
    token_names: list[str] | None = None
    provenance: dict[str, Any]
    logit_scale: float | None = None
    can_dense: bool = False
    can_text: bool = False
    module: Any = None
    transform: Any = None
    _dim: int | None = None

    @abstractmethod
    def embed(self, tiles: np.ndarray) -> np.ndarray:
        """Embed a batch of tiles.

        Parameters
        ----------
        tiles
            (n, px, px, 3) uint8.

        Returns
        -------
        (n, d) float32.
        """

    def embed_batches(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Embed one batch after another; networks begin with the next before the last has come back.

        Parameters
        ----------
        batches
            Each (n, px, px, 3) uint8.

        Returns
        -------
        An iterator of (n, d) float32, in the order of the batches.
        """
        return map(self.embed, batches)

    def embed_text(self, texts: str | Sequence[str]) -> np.ndarray:
        """Embed texts into the space of the images, as the network gives them: normalise both to compare.

        Parameters
        ----------
        texts
            One text or several.

        Returns
        -------
        (n, d) float32.

        Raises
        ------
        ValueError
            If the encoder knows images only.
        """
        raise ValueError(
            f"{self.name!r} embeds images only. Texts need an image-text model: 'conch', 'keep', 'plip', 'quiltnet' or "
            "'open_clip:...'."
        )

    def dense(self, tiles: np.ndarray) -> np.ndarray:
        """Embed the places within each tile: patch tokens, or the last map of a convolutional network.

        Parameters
        ----------
        tiles
            (n, px, px, 3) uint8.

        Returns
        -------
        (n, gh, gw, d) float32; d may differ from ``dim``.

        Raises
        ------
        ValueError
            If the encoder has one embedding per tile only.
        """
        raise ValueError(f"{self.name!r} has one embedding per tile and none within it. Check can_dense first.")

    def at(self, spec: TileSpec, *, strict: bool = True) -> Encoder:
        """The encoder for tiles of a spec: itself, if it was trained for their µm/px.

        Parameters
        ----------
        spec
            Of the tiles.
        strict
            Refuse tiles of another µm/px; otherwise it is a warning.

        Raises
        ------
        ValueError
            If they differ by more than 2 %.
        """
        if self.spec is not None and abs(spec.mpp / self.spec.mpp - 1) > scale.TOLERANCE:
            msg = (
                f"The encoder {self.name!r} was trained on {self.spec.mpp:.4g} µm/px, the tiles have "
                f"{spec.mpp:.4g}. Lay tiles of {round(spec.size_um / self.spec.mpp)} px on {spec.size_um:.4g} µm, or "
                "pass spec= if you mean it."
            )
            if strict:
                raise ValueError(msg)
            logger.warning("%s", msg)
        return self

    def on(self, device: str | None = None, precision: str | None = None, compile: bool = False) -> Encoder:
        """The encoder on a device: itself, unless a class of its own says otherwise.

        Parameters
        ----------
        device, precision, compile
            As of :func:`sthist.encoders.get`.
        """
        return self

    @property
    def dim(self) -> int:
        """Size of an embedding."""
        if self._dim is None:
            self._dim = self._measured()
        return self._dim

    @dim.setter
    def dim(self, value: int) -> None:
        self._dim = int(value)

    def _measured(self) -> int:
        px = PROBE_PX if self.spec is None else self.spec.px
        return int(self.embed(np.full((1, px, px, 3), 255, np.uint8)).shape[1])

    @property
    def features(self) -> pd.DataFrame | None:
        """What each dimension is: a frame with one row per dimension, by name; None where they have no names."""
        if self.feature_names is None:
            return None
        import pandas as pd

        meanings = [self.feature_meaning(name) for name in self.feature_names]
        return pd.DataFrame({"meaning": meanings}, index=pd.Index(self.feature_names))

    def feature_meaning(self, name: str) -> str:
        """Unit and meaning of a dimension that has a name."""
        return ""

    @property
    def key(self) -> str:
        """Key of the embeddings in ``obsm``."""
        return f"X_{safe_key(self.name)}"

    def __repr__(self) -> str:
        spec = "any tile" if self.spec is None else f"{self.spec.size_um:g} µm on {self.spec.px} px"
        return f"{type(self).__name__}({self.name!r}, {spec})"


def own_content(encoder: Encoder) -> str | None:
    """A hash of what is the user's own in an encoder; None for those that a name stands for.

    What a class of the user's states in its ``provenance``, when it is made, is taken for all that varies in it.
    """
    given: Any = encoder
    if isinstance(encoder, Joined):
        contents = [own_content(part) for part in encoder.encoders]
        return None if all(content is None for content in contents) else content_of(contents)
    source = getattr(encoder, "provenance", {}).get("source")
    if type(encoder).__module__.partition(".")[0] == "sthist":
        if source == "callable":
            return content_of(given.function)
        return content_of([given.network, encoder.transform]) if source == "module" else None
    stated = "provenance" in vars(encoder)
    varies = {} if stated else {name: value for name, value in vars(encoder).items() if name != "_dim"}
    return content_of([type(encoder), varies])


def checked_tiles(tiles: Any) -> Any:
    """Tiles as they are given, an array or a tensor, if they are square RGB tiles of uint8."""
    shape = tuple(tiles.shape)
    if len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2] or shape[1] == 0:
        raise ValueError(f"An encoder takes square RGB tiles (n, px, px, 3); these have shape {shape}.")
    if str(tiles.dtype).removeprefix("torch.") != "uint8":
        raise ValueError(f"An encoder takes tiles of uint8, 0 to 255; these are of {tiles.dtype}.")
    return tiles


def checked_rows(rows: np.ndarray, n: int, name: str, weights: str | None = None) -> np.ndarray:
    """Embeddings as they are given, if there is one finite row per tile."""
    if rows.ndim != 2 or len(rows) != n:
        raise ValueError(
            f"{name!r} gave shape {rows.shape} for {n} tiles; an encoder gives one row per tile, ({n}, d). A network "
            "that gives maps or tokens needs pooling first."
        )
    if not np.isfinite(rows).all():
        row = int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
        damaged = f", or, if they are damaged, get its weights ({weights}) again" if weights else ""
        raise ValueError(
            f"{name!r} gave NaN or infinity, first for tile {row} of the batch. Try precision='float32'{damaged}."
        )
    return rows


class Joined(Encoder):
    """Several encoders, whose embeddings stand side by side in their order.

    Each resizes the tile to its own pixels; the tissue that they see has to be the same.

    Parameters
    ----------
    encoders
        Two or more.

    Raises
    ------
    ValueError
        If they are trained for tiles of different physical size, or there is none.

    Examples
    --------
    >>> import numpy as np, sthist
    >>> both = sthist.encoders.get(
    ...     ["timm:resnet10t", "timm:test_resnet"], pretrained=False, device="cpu"
    ... )
    >>> both.embed(np.zeros((2, 64, 64, 3), np.uint8)).shape, both.key
    ((2, 608), 'X_timm_resnet10t_timm_test_resnet')
    """

    def __init__(self, encoders: Sequence[Encoder]) -> None:
        if not encoders:
            raise ValueError("There is no encoder to join.")
        self.encoders = list(encoders)
        self.name = "+".join(encoder.name for encoder in self.encoders)
        self.spec = common_spec(self.encoders)
        self.provenance = {
            "source": "joined",
            "order": [encoder.name for encoder in self.encoders],
            "encoders": [encoder.provenance for encoder in self.encoders],
        }

    def _measured(self) -> int:
        return sum(encoder.dim for encoder in self.encoders)

    @property
    def feature_names(self) -> list[str] | None:  # type: ignore[override]
        """Of each dimension, the encoder's name before it, if all encoders have them."""
        if any(encoder.feature_names is None for encoder in self.encoders):
            return None
        return [f"{encoder.name}:{name}" for encoder in self.encoders for name in encoder.feature_names or []]

    @property
    def key(self) -> str:
        """Key of the embeddings in ``obsm``."""
        return f"X_{safe_key([encoder.name for encoder in self.encoders])}"

    def embed(self, tiles: np.ndarray) -> np.ndarray:
        """Embed a batch of tiles with each encoder: (n, d) float32, d the sum of the sizes."""
        checked_tiles(tiles)
        return np.concatenate([encoder.embed(tiles) for encoder in self.encoders], axis=1)


def common_spec(encoders: Sequence[Encoder]) -> TileSpec | None:
    """The tile of several encoders: one physical size, the pixels of the finest."""
    specs = [(encoder.name, encoder.spec) for encoder in encoders if encoder.spec is not None]
    if not specs:
        return None
    smallest, largest = min(spec.size_um for _, spec in specs), max(spec.size_um for _, spec in specs)
    if largest - smallest > SAME_SIZE * largest:
        sizes = ", ".join(f"{name!r} {spec.size_um:g} µm" for name, spec in specs)
        raise ValueError(
            f"These encoders were trained for tiles of different size: {sizes}. One tile cannot be right for all; give "
            "spec=TileSpec(size_um=..., px=...) if you want it nevertheless."
        )
    return TileSpec(size_um=specs[0][1].size_um, px=max(spec.px for _, spec in specs))
