"""Virtual against real tiles: scores of every tile, beside those of predictions that know nothing."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._settings import logger, settings
from sthist._weights.files import MetricUnavailable
from sthist.metrics import _deep, _networks
from sthist.metrics._pixels import batches, mse, pair, psnr, ssim

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

PIXELS = {"mse": mse, "psnr": psnr, "ssim": ssim}
PAIRS = ("mse", "psnr", "ssim", "lpips", "clip")
SETS = ("fid", "kid")
NOT_AVAILABLE = "not available"
NO_SCORES = ("fold", "seed", "tile")
"""Columns of numbers that tell rows apart."""


def compare(
    virtual: Any,
    real: Any,
    *,
    classes: Sequence[Any] | None = None,
    metrics: Sequence[str] = ("mse", "psnr", "ssim"),
    nulls: bool = True,
    seed: int | None = None,
    encoder: _deep.Extractor | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    others: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Score virtual tiles against the real ones, and beside them two predictions that know nothing of the tile.

    A score means little by itself: ``"mean colour"`` is the mean colour of all real tiles, everywhere, and
    ``"shuffled"`` is the virtual image of another tile.

    Parameters
    ----------
    virtual, real
        uint8 tiles (n, h, w, 3), the same place in both.
    classes
        Class of each tile; tiles where it is missing count in no class.
    metrics
        Of each tile ``"mse"``, ``"psnr"``, ``"ssim"``, ``"lpips"``, ``"clip"``; of all tiles and of each class
        ``"fid"``, ``"kid"``, which :func:`summarize` shows.
    nulls
        Score the predictions that know nothing, too.
    seed
        Of the shuffling; by default that of the settings.
    encoder
        Network of FID and KID, as of :func:`fid`.
    options
        Further arguments of a metric's function, by metric, such as ``{"lpips": {"net": "alex"}}``.
    others
        Further virtual tiles of the same places, by the name of their method.

    Returns
    -------
    One row per method (``"virtual"``, those of ``others``, ``"mean colour"``, ``"shuffled"``) and tile, with columns
    ``method``, ``tile``, ``class`` if given, and one per metric of a tile. A metric whose weights are not on this
    machine is nan, and ``frame.attrs["not_available"]`` says why; ``frame.attrs["sets"]`` holds FID and KID.

    Raises
    ------
    ValueError
        If tiles cannot be compared, a metric is unknown, or classes are not one per tile.

    Examples
    --------
    >>> import numpy as np
    >>> from sthist.metrics import image
    >>> real = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    >>> frame = image.compare(real // 2 + 60, real, classes=["stroma", "stroma", "tumour", "tumour"])
    >>> frame.groupby("method", sort=False)["ssim"].mean().round(2).to_dict()
    {'virtual': 0.8, 'mean colour': 0.01, 'shuffled': 0.01}
    """
    import pandas as pd

    metrics = [metrics] if isinstance(metrics, str) else list(dict.fromkeys(metrics))
    options = options or {}
    for name in [*metrics, *options]:
        if name not in (*PAIRS, *SETS):
            raise ValueError(f"There is no metric {name!r}; there are {[*PAIRS, *SETS]}.")
    virtual, real, _ = pair(virtual, real)
    n = len(real)
    labels = None if classes is None else pd.Series(classes).reset_index(drop=True)
    if labels is not None and len(labels) != n:
        raise ValueError(f"classes needs one value per tile: there are {n} tiles and {len(labels)} values.")
    methods = _methods(virtual, real, settings.seed if seed is None else seed) if nulls else {}
    further = {name: (pair(tiles, real)[0], np.arange(n)) for name, tiles in (others or {}).items()}
    methods = {"virtual": (virtual, np.arange(n)), **further, **methods}

    columns = {} if labels is None else {"class": labels}
    frames = [pd.DataFrame({"method": method, "tile": np.arange(n)} | columns) for method in methods]
    frame = pd.concat(frames, ignore_index=True)
    groups: dict[str | None, np.ndarray] = {None: np.arange(n)}
    if labels is not None:
        groups |= {str(key): np.asarray(index) for key, index in labels.groupby(labels, observed=True).indices.items()}
    records: list[dict[str, Any]] = []
    reasons: dict[str, str] = {}
    for name in sorted(metrics, key=lambda name: name in SETS):
        arguments = dict(options.get(name, {}))
        try:
            if name in PAIRS:
                frame[name] = np.nan
                frame[name] = np.concatenate(_score_tiles(name, methods, real, arguments))
            else:
                seeded = {"seed": seed} if name == "kid" else {}
                records += _score_sets(name, methods, real, groups, {"encoder": encoder} | seeded | arguments)
        except MetricUnavailable as error:
            reasons[name] = str(error)
    for name, reason in reasons.items():
        logger.warning("%s is not available: %s", name, reason)
    frame.attrs["not_available"] = reasons
    frame.attrs["sets"] = records
    return frame


def summarize(frame: pd.DataFrame, groupby: str | None = "class") -> pd.DataFrame:
    """Mean and standard deviation of each score, and scores of whole sets, per class and method.

    Parameters
    ----------
    frame
        From :func:`compare`.
    groupby
        Column to group by, beside the method; None for one row per method.

    Returns
    -------
    One row per class and method: ``n`` tiles; the mean of each column of numbers under its own name and its standard
    deviation as ``<score>_sd``; FID and KID. What could not be computed is the text ``"not available"``, and the reason
    is in ``attrs["not_available"]``.

    Raises
    ------
    ValueError
        If there is no such column.

    Examples
    --------
    >>> import numpy as np
    >>> from sthist.metrics import image
    >>> real = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    >>> frame = image.compare(real // 2 + 60, real, classes=["stroma", "stroma", "tumour", "tumour"], nulls=False)
    >>> image.summarize(frame)[["class", "method", "n", "mse"]].round()
        class   method  n     mse
    0  stroma  virtual  2  1400.0
    1  tumour  virtual  2  1417.0
    """
    import pandas as pd

    check_column(frame, groupby)
    reasons = dict(frame.attrs.get("not_available", {}))
    sets: dict[str, dict[tuple[Any, ...], float]] = {}
    for record in frame.attrs.get("sets", []):
        values = sets.setdefault(record["metric"], {})
        values[record["method"], record["rows"]] = record["value"]
    set_names = [name for name in SETS if name in sets or name in reasons]
    rows = []
    keys = ["method"] if groupby is None else [groupby, "method"]
    ordered = frame.assign(method=pd.Categorical(frame["method"], frame["method"].unique()))
    for key, part in ordered.groupby(keys, observed=True):
        row = dict(zip(keys, key, strict=True)) | {"n": len(part)}
        for name in [name for name in part.select_dtypes("number").columns if name not in (*keys, "tile")]:
            missing = name in reasons
            with np.errstate(invalid="ignore"):  # infinite PSNR has no standard deviation
                row[name] = NOT_AVAILABLE if missing else part[name].mean()
                row[f"{name}_sd"] = NOT_AVAILABLE if missing else part[name].std()
        for name in set_names:
            # A set's score belongs to exactly these tiles: not to a part of them, nor to a grouping that came later.
            value = sets.get(name, {}).get((row["method"], _name_of(part.index)))
            row[name] = NOT_AVAILABLE if value is None else value
            if value is None:
                reasons.setdefault(name, f"{name} is computed by compare(), for classes of at least two tiles.")
        rows.append(row)
    summary = pd.DataFrame(rows)
    summary.attrs["not_available"] = reasons
    return summary


def by_seed(frame: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """One row per group and seed.

    The mean of each score of tiles, and of FID and KID, which belong to whole sets, over the folds.
    """
    import pandas as pd

    within = list(dict.fromkeys([*keys, "seed"]))
    names = [name for name in frame.select_dtypes("number").columns if name not in (*within, *NO_SCORES)]
    grouped = frame.groupby(within, sort=False, observed=True)
    means = grouped[names].mean()
    means.insert(0, "n_tiles", grouped.size())
    records = pd.DataFrame(frame.attrs.get("sets", []))
    if len(records):
        whole = "class" not in keys
        records = records[records["class"].isna() if whole else records["class"].notna()]
        if len(records) and set(within) <= set(records.columns):
            sets = records.pivot_table(index=within, columns="metric", values="value", aggfunc="mean", observed=True)
            means = means.join(sets)
    for name in frame.attrs.get("not_available", {}):
        if name not in means:
            means[name] = np.nan
    return means.reset_index()


def check_column(frame: pd.DataFrame, by: str | None) -> None:
    """Refuse a column that is not there."""
    if by is not None and by not in frame.columns:
        raise ValueError(
            f"The table has no column {by!r}, but {list(frame.columns)}. Give classes= to compare(), or groupby=None "
            "for one row per method."
        )


def _methods(virtual: np.ndarray, real: np.ndarray, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Predictions that know nothing of a tile: images, and which of them stands for each tile."""
    n = len(real)
    if n < 2:
        raise ValueError("Another tile's image needs at least two tiles. For a single tile, give nulls=False.")
    colour = np.mean([tile.mean((0, 1)) for tile in real], axis=0)
    mean = np.broadcast_to(np.round(colour).astype(np.uint8), (1, *real.shape[1:]))
    return {"mean colour": (mean, np.zeros(n, int)), "shuffled": (virtual, shuffled(n, seed))}


def _name_of(rows: Any) -> int:
    """A number that names a set of rows of a frame, whatever their order."""
    import pandas as pd

    return int(pd.util.hash_array(np.sort(np.asarray(rows))).sum(dtype=np.uint64))


def shuffled(n: int, seed: int) -> np.ndarray:
    """For each of n tiles another one: a cycle through all in random order, so that none is paired with itself."""
    order = np.random.default_rng(seed).permutation(n)
    partner = np.empty(n, int)
    partner[order] = np.roll(order, 1)
    return partner


def _score_tiles(name: str, methods: Mapping[str, Any], real: np.ndarray, options: dict[str, Any]) -> list[np.ndarray]:
    """One metric of every tile, for every method."""
    if name == "clip":
        network = _networks.clip_extractor(**options)
        target, *virtual = _features(network, methods, real)
        return [_deep.cosine(features, target) for features in virtual]
    if name == "lpips":
        network = _networks.lpips_network(**options)
        score: Any = partial(_networks.lpips_of, network)
    else:
        score = partial(PIXELS[name], **options)
    return [
        np.concatenate([score(images[index[part]], real[part]) for part in batches(len(real), 64)])
        for images, index in methods.values()
    ]


def _score_sets(
    name: str,
    methods: Mapping[str, Any],
    real: np.ndarray,
    groups: Mapping[str | None, np.ndarray],
    options: dict[str, Any],
) -> list[dict[str, Any]]:
    """One metric of all tiles and of each class, for every method; classes of one tile have none."""
    network = _deep.feature_extractor(name.upper(), options.pop("encoder", None), options.pop("weights", None))
    target, *virtual = _features(network, methods, real)
    scored = {group: index for group, index in groups.items() if len(index) > 1}
    if name == "fid" and scored:
        _deep.warn_biased(min(len(index) for index in scored.values()), target.shape[1])
    score = _deep.frechet if name == "fid" else _deep.kernel_distance
    return [
        {
            "metric": name,
            "method": method,
            "class": group,
            "n": len(index),
            "rows": _name_of(position * len(real) + index),
            "value": score(features[index], target[index], **options),
        }
        for position, (method, features) in enumerate(zip(methods, virtual, strict=True))
        for group, index in scored.items()
    ]


def _features(network: Any, methods: Mapping[str, Any], real: np.ndarray) -> list[np.ndarray]:
    """Features of the real tiles, then of each method's; images that two methods share pass the network once."""
    seen: dict[int, np.ndarray] = {}
    for images, _ in methods.values():
        if id(images) not in seen:
            seen[id(images)] = _networks.extract(network, images)
    return [_networks.extract(network, real), *(seen[id(images)][index] for images, index in methods.values())]
