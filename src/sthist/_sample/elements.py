"""Find an element of a SpatialData by name or by role, or say what exists."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist._messages import listed, plain
from sthist._sample import other_tools
from sthist._settings import logger

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from geopandas import GeoDataFrame
    from shapely.geometry.base import BaseGeometry
    from spatialdata import SpatialData


PREDICTS = ("tl.expression", "tl.cell_expression")
"""Verbs whose tables hold what a model says of genes."""

MISSING = "missing"
"""State of a core of a microarray that is not there: its region is where it would be."""


def is_missing(shapes: GeoDataFrame) -> np.ndarray:
    """Which shapes are cores of a microarray that are not there, (n,) bool."""
    if not {"row", "column", "state"} <= set(shapes.columns):
        return np.zeros(len(shapes), bool)
    return (shapes["state"] == MISSING).to_numpy()


def present(shapes: GeoDataFrame) -> GeoDataFrame:
    """Shapes without the cores of a microarray that are missing."""
    return shapes[~is_missing(shapes)]


def outlines_um(sdata: SpatialData, key: str) -> np.ndarray:
    """Areas of shapes in µm, (n,) geometries, none crossing itself; cores that are missing are left out."""
    import spatialdata as sd

    shapes = present(sd.transform(get(sdata, "shapes", key), to_coordinate_system=UM))
    geometry = shapes.geometry.buffer(shapes["radius"]) if "radius" in shapes else shapes.geometry
    return repaired(geometry.to_numpy(), shapes.index, key)


def repaired(polygons: np.ndarray, names: Any, key: str) -> np.ndarray:
    """Polygons of which none crosses itself, and whatever is no area (lines, points) is empty."""
    import shapely

    wrong = ~shapely.is_valid(polygons) & ~shapely.is_missing(polygons)
    if wrong.any():
        logger.warning(
            "%d of the shapes %r cross themselves, such as %r: what their outline encloses counts.",
            int(wrong.sum()),
            key,
            plain(names[int(wrong.argmax())]),
        )
        polygons = polygons.copy()
        polygons[wrong] = shapely.make_valid(polygons[wrong], method="structure", keep_collapsed=False)
    flat = ~(shapely.area(polygons) > 0)
    return np.where(flat, shapely.Polygon(), polygons)


def region_geometry(sdata: SpatialData, within: Any) -> BaseGeometry:
    """The geometry, in µm, that a ``within=`` argument stands for.

    Of the cores of a microarray, those that are there.
    """
    import shapely

    if isinstance(within, str):
        geometry = shapely.union_all(outlines_um(sdata, within))
    elif isinstance(within, shapely.geometry.base.BaseGeometry):
        geometry = within
    elif len(within) == 4:
        geometry = shapely.box(*map(float, within))
    else:
        raise ValueError(
            f"within={within!r} is neither a box (x0, y0, x1, y1) in µm, nor a polygon, nor the name of shapes."
        )
    if geometry.is_empty or not geometry.is_valid or geometry.area == 0:
        raise ValueError(f"within={within!r} has no area, or crosses itself: {shapely.is_valid_reason(geometry)}.")
    return geometry


def is_gene(names: Any, controls: Sequence[str] | None = None) -> np.ndarray:
    """Which features are genes.

    No blank, negative control or unassigned codeword, by their prefix, whatever its case.
    """
    lower = np.char.lower(np.asarray(names, dtype=str))
    prefixes = CONTROL_PREFIXES if controls is None else [prefix.lower() for prefix in controls]
    missing = np.isin(lower, ["", "nan", "none", "<na>"])  # how frames write that there is no name
    return ~np.logical_or.reduce([missing, *(np.char.startswith(lower, prefix) for prefix in prefixes)])


Kind = Literal["images", "labels", "points", "shapes", "tables"]

UM = "um"
"""Name of the coordinate system in which every element of a sample is registered, in micrometres."""

COUNTS = "counts"
"""Layer of a table's raw counts, beside what they were normalised to."""

NUCLEAR_NAMES = re.compile(r"dapi|hoechst|draq5|syto|nucle(ar|i|us)", re.IGNORECASE)
CYTOPLASM_KINDS = {
    "membrane": r"membrane|boundary|cellbound|cd298|b2m|atp1a1",
    "epithelium": r"cadherin|keratin|panck",
    "stroma": r"actin|sma\b|vimentin",
    "immune": r"cd45",
    "cytoplasm": r"poly.?t|18s|28s|rrna|cyto",
}
"""What stains beside the nuclear one show, by their channels' names; a mixture of antibodies is of the first kind."""

CYTOPLASM_NAMES = re.compile("|".join(CYTOPLASM_KINDS.values()), re.IGNORECASE)
MORPHOLOGY_NAMES = re.compile(r"^morphology(_focus|_mip)?$", re.IGNORECASE)
HE_NAMES = re.compile(r"(^|[^a-z])(he|h&e|h_and_e|hematoxylin)([^a-z]|$)", re.IGNORECASE)
CONTROL_FEATURES = {
    "xenium": ("negcontrol", "unassigned", "deprecated", "antisense", "blank", "intergenic"),
    "cosmx": ("negative", "negprb", "systemcontrol", "falsecode"),
    "merscope": ("blank",),
}
"""Features that are no genes, by lower-case prefix, as each platform names them."""

CONTROL_PREFIXES = tuple(sorted({prefix for prefixes in CONTROL_FEATURES.values() for prefix in prefixes}))
"""All of them: no gene symbol begins with any."""


def safe_key(name: str | Sequence[str]) -> str:
    """A key that SpatialData accepts: letters, digits, ``_ . -``; everything else becomes ``_``.

    Examples
    --------
    >>> from sthist._sample.elements import safe_key
    >>> safe_key("timm:resnet18"), safe_key(["conch", "uni"]), safe_key("B cells")
    ('timm_resnet18', 'conch_uni', 'B_cells')
    """
    joined = name if isinstance(name, str) else "_".join(name)
    return re.sub(r"[^A-Za-z0-9_.-]", "_", joined)


def get(sdata: SpatialData, kind: Kind, key: str) -> Any:
    """The element ``key`` of a kind; a KeyError says what exists and what comes closest."""
    elements = getattr(sdata, kind)
    if key in elements:
        return elements[key]
    msg = f"No {kind[:-1]} {key!r} in this object. {describe(kind, elements)}"
    close = difflib.get_close_matches(key, list(elements), n=1)
    if close:
        msg += f" Did you mean {close[0]!r}?"
    raise KeyError(msg)


def describe(kind: str, keys: Iterable[str]) -> str:
    """One sentence that lists the keys of a kind, a long list shortened."""
    names = sorted(keys)
    return f"It has {kind} {listed(names)}." if names else f"It has no {kind}."


def roles(sdata: SpatialData) -> dict[str, Any]:
    """What the readers recorded of the elements' roles, and LazySlide and sopa where they recorded nothing.

    A verb that finds several elements asks once, and hands the answer to each look-up as ``recorded``.
    """
    return other_tools.roles(sdata) | sdata.attrs.get("sthist", {}).get("roles", {})


def set_role(sdata: SpatialData, role: str, value: dict[str, Any]) -> None:
    """Record the role of an element in ``sdata.attrs["sthist"]["roles"]``."""
    sdata.attrs.setdefault("sthist", {}).setdefault("roles", {})[role] = value


def require_one_sample(sdata: SpatialData) -> None:
    """Refuse an object made by :func:`spatialdata.concatenate`: its samples lie on top of each other."""
    names = [name for kind in ("images", "points", "shapes", "labels") for name in getattr(sdata, kind)]
    stems: dict[str, set[str]] = {}
    for name in names:
        stem, dash, suffix = name.rpartition("-")
        if not dash:
            return
        stems.setdefault(suffix, set()).add(stem)
    stem_sets = list(stems.values())
    # Two elements at least: images named fov-1 and fov-2 are fields of view of one sample.
    if len(stem_sets) > 1 and len(stem_sets[0]) > 1 and all(stem_set == stem_sets[0] for stem_set in stem_sets):
        samples = ", ".join(repr(sample) for sample in sorted(stems))
        raise ValueError(
            f"This object looks like several samples put together by spatialdata.concatenate ({samples}): their planes "
            "would be read as one. Keep one SpatialData per sample and pass them one by one."
        )


def channel_names(element: Any) -> list[str]:
    """Names of an image's channels, as text."""
    from spatialdata.models import get_channel_names

    return [str(name) for name in get_channel_names(element)]


def find_he(sdata: SpatialData, image: str | None = None, *, recorded: Mapping[str, Any] | None = None) -> str:
    """Key of the H&E image: given, recorded by the reader, or the only image named like one."""
    if image is not None:
        get(sdata, "images", image)
        return image
    key = (roles(sdata) if recorded is None else recorded).get("he", {}).get("image")
    if key in sdata.images:
        return str(key)
    candidates = [name for name in _measured_images(sdata) if HE_NAMES.search(name)]
    return _only_one(sdata, "H&E image", "images", candidates, "image=")


def is_named_he(sdata: SpatialData, image: str) -> bool:
    """Whether an image is the H&E by what a reader recorded, or named like one."""
    return image == roles(sdata).get("he", {}).get("image") or HE_NAMES.search(image) is not None


def find_tissue(sdata: SpatialData) -> str:
    """Key of the outlines of the tissue: ``"tissue"``, or those of LazySlide where there are no such."""
    return "tissue" if "tissue" in sdata.shapes else roles(sdata).get("tissue", {}).get("shapes", "tissue")


def _measured_images(sdata: SpatialData) -> list[str]:
    """Images that no verb has made."""
    results = sdata.attrs.get("sthist", {}).get("results", {})
    return [name for name in sdata.images if name not in results and name != "virtual_he"]


@dataclass(frozen=True)
class HighResElements:
    """The elements of one sample of high-resolution spatial transcriptomics, by role."""

    sdata: SpatialData  # the sample
    nuclear: tuple[str, ...]  # images of the nuclear stain that together tile one plane
    nuclear_channel: str  # its channel
    cytoplasm_channels: tuple[str, ...] = ()  # channels of the same images that show cytoplasm or membrane
    points: str | None = None  # key of the transcripts
    gene: str | None = None  # their gene column
    table: str | None = None  # key of the cell table
    z: int | None = None  # plane of the stain that counts; None for the projection of all


def find_high_res(
    sdata: SpatialData,
    *,
    image: str | Sequence[str] | None = None,
    channel: str | None = None,
    points: str | None = None,
    table: str | None = None,
    z: int | None = None,
) -> HighResElements:
    """Resolve nuclear stain, transcripts and cells; everything is found where there is one candidate."""
    require_one_sample(sdata)
    recorded = roles(sdata)
    nuclear, nuclear_channel = find_nuclear(sdata, image, channel, recorded=recorded)
    names = channel_names(sdata.images[nuclear[0]])
    stated = recorded.get("nuclear", {}).get("cytoplasm")
    cytoplasm = (
        [name for name in stated if name in names and name != nuclear_channel]
        if stated is not None
        else [name for name in names if name != nuclear_channel and CYTOPLASM_NAMES.search(name)]
    )
    points_key, gene = find_transcripts(sdata, points, recorded=recorded)
    return HighResElements(
        sdata=sdata,
        nuclear=nuclear,
        nuclear_channel=nuclear_channel,
        cytoplasm_channels=tuple(cytoplasm),
        points=points_key,
        gene=gene,
        table=find_cell_table(sdata, table, recorded=recorded),
        z=z,
    )


def find_nuclear(
    sdata: SpatialData,
    image: str | Sequence[str] | None = None,
    channel: str | None = None,
    *,
    recorded: Mapping[str, Any] | None = None,
) -> tuple[tuple[str, ...], str]:
    """Images of the nuclear stain that tile one plane, and its channel."""
    role = (roles(sdata) if recorded is None else recorded).get("nuclear", {})
    if image is not None:
        keys = (image,) if isinstance(image, str) else tuple(image)
        for key in keys:
            get(sdata, "images", key)
        if role and set(keys) <= set(role["images"]):
            channel = channel or role.get("channel")
    elif role and all(key in sdata.images for key in role["images"]):
        keys = tuple(role["images"])
        channel = channel or role.get("channel")
    else:
        keys = (_only_one(sdata, "nuclear stain", "images", _nuclear_candidates(sdata), "image="),)
    names = channel_names(sdata.images[keys[0]])
    for key in keys[1:]:
        if channel_names(sdata.images[key]) != names:
            raise ValueError(
                f"The images that tile the nuclear stain have different channels: {keys[0]!r} has {names}, {key!r} has "
                f"{channel_names(sdata.images[key])}."
            )
    return keys, _nuclear_channel(keys[0], names, channel)


def _nuclear_candidates(sdata: SpatialData) -> list[str]:
    by_channel = [
        name
        for name in _measured_images(sdata)
        if any(NUCLEAR_NAMES.search(channel) for channel in channel_names(sdata.images[name]))
    ]
    by_name = [name for name in _measured_images(sdata) if NUCLEAR_NAMES.search(name) or MORPHOLOGY_NAMES.search(name)]
    return by_channel or by_name


def _nuclear_channel(key: str, names: list[str], channel: str | None) -> str:
    if channel is not None:
        if channel not in names:
            raise KeyError(f"Image {key!r} has no channel {channel!r}; it has {names}.")
        return channel
    if len(names) == 1:
        return names[0]
    matches = [name for name in names if NUCLEAR_NAMES.search(name)]
    if len(matches) == 1:
        return matches[0]
    raise ValueError(f"Which channel of image {key!r} is the nuclear stain? It has {names}; say so with channel=.")


def find_transcripts(
    sdata: SpatialData, points: str | None = None, *, recorded: Mapping[str, Any] | None = None
) -> tuple[str | None, str | None]:
    """Key of the transcripts and their gene column; (None, None) where the object has no points."""
    role = (roles(sdata) if recorded is None else recorded).get("transcripts", {})
    if points is None:
        if role.get("points") in sdata.points:
            points = role["points"]
        elif not sdata.points:
            return None, None
        else:
            named = [name for name in sdata.points if "transcript" in name.lower()]
            points = _only_one(sdata, "transcripts", "points", named or list(sdata.points), "points=")
    element = get(sdata, "points", points)
    gene = role.get("gene") if role.get("points") == points else None
    gene = gene or element.attrs.get("spatialdata_attrs", {}).get("feature_key")
    if gene is None or gene not in element.columns:
        columns = [str(column) for column in element.columns]
        raise ValueError(
            f"Points {points!r} name no gene column{'' if gene is None else f' ({gene!r} is not there)'}: their "
            f"columns are {columns}. Parse them with PointsModel.parse(..., feature_key=...) or io.assemble(..., "
            "gene=...)."
        )
    return points, str(gene)


def find_cell_table(
    sdata: SpatialData, table: str | None = None, *, recorded: Mapping[str, Any] | None = None
) -> str | None:
    """The table of cells: the one that is named, else one whose cells can be placed."""
    if table is not None:
        get(sdata, "tables", table)
        return table
    usual = (roles(sdata) if recorded is None else recorded).get("cells", {}).get("table")
    other = other_tools.without_counts(sdata)
    candidates = [
        name
        for name, adata in sdata.tables.items()
        if "spatialdata_attrs" in adata.uns
        and adata.X is not None
        and name not in adata.uns.get("sthist", {})
        and name not in other
    ]
    name = usual if usual in sdata.tables else candidates[0] if len(candidates) == 1 else None
    if name is not None and cell_shapes(sdata, name) is None:
        logger.info("The cells of table %r are left aside: no shapes are theirs.", name)
        return None
    return name


def find_expression_table(sdata: SpatialData, table: str | None = None) -> str:
    """The table whose genes are meant: the one that is named, that of the reader, or the only one that has a matrix."""
    if table is not None:
        get(sdata, "tables", table)
        return table
    known = roles(sdata)
    recorded = {known.get(role, {}).get("table") for role in ("cells", "spots")}
    other = other_tools.without_counts(sdata)
    measured = [
        name
        for name, adata in sdata.tables.items()
        if adata.X is not None
        and adata.n_vars
        and name not in other
        and not (_is_predicted(name, adata) or is_of_features(name, adata))
    ]
    candidates = [name for name in measured if name in recorded] or measured
    return _only_one(sdata, "table of expression", "tables", candidates, "table=")


def _is_predicted(name: str, adata: Any) -> bool:
    """Whether a table holds what a model says of its genes, not what was measured."""
    return any(
        hasattr(made, "get") and made.get("call") in PREDICTS and (key == name or made.get("place") == "X")
        for key, made in adata.uns.get("sthist", {}).items()
    )


def is_of_features(name: str, adata: Any) -> bool:
    """Whether a table holds features of an encoder in place of genes, as :func:`sthist.pp.embed` makes it."""
    made = adata.uns.get("sthist", {}).get(name)
    return hasattr(made, "get") and made.get("call") == "pp.embed" and made.get("place") == "X"


def _only_one(sdata: SpatialData, role: str, kind: Kind, candidates: list[str], argument: str) -> str:
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise KeyError(f"Found no {role}. {describe(kind, getattr(sdata, kind))} Say which one it is with {argument}")
    raise ValueError(
        f"Several {kind} could be the {role}: {', '.join(map(repr, sorted(candidates)))}. Choose with {argument}"
    )


def cell_shapes(sdata: SpatialData, table: str) -> tuple[str, Any] | None:
    """Shapes that are the cells of a table, and the name of each of its cells in them.

    Those that the table is linked to; else, as for a Xenium table that is linked to labels, those whose index holds the
    names of its cells.
    """
    import pandas as pd

    adata = sdata.tables[table]
    link = adata.uns.get("spatialdata_attrs", {})
    regions = [link["region"]] if isinstance(link.get("region"), str) else list(link.get("region") or [])
    if len(regions) == 1 and regions[0] in sdata.shapes:
        instances = adata.obs[link["instance_key"]].to_numpy()
        # Hashed: numpy's own isin compares every pair where names are objects.
        if pd.Index(instances).isin(sdata.shapes[regions[0]].index).all():
            return regions[0], instances
    names = [adata.obs["cell_id"].to_numpy()] if "cell_id" in adata.obs else []
    for instances in (*names, adata.obs_names.to_numpy()):
        cell_names = pd.Index(instances.astype(str))
        for key in sorted(sdata.shapes, key=lambda key: "cell" not in key):
            index = sdata.shapes[key].index
            if len(cell_names) and index.is_unique:
                places = pd.Index(index.astype(str)).get_indexer(cell_names)
                if (places >= 0).all():
                    return key, index.to_numpy()[places]
    return None


def raw_counts(adata: Any) -> Any:
    """Counts of a table, also after :func:`sthist.pp.genes` has normalised its ``X``."""
    return adata.layers.get(COUNTS, adata.X)


def cell_counts(sdata: SpatialData, table: str) -> tuple[Any, np.ndarray]:
    """Regions of the cells that a table annotates, as a GeoDataFrame in µm, and their total counts, in its order."""
    import spatialdata as sd
    from spatialdata.transformations import get_transformation

    adata = sdata.tables[table]
    link = cell_shapes(sdata, table)
    if link is None or adata.X is None:
        regions = adata.uns.get("spatialdata_attrs", {}).get("region", "nothing")
        raise ValueError(
            f"Table {table!r} "
            f"{'has no counts' if adata.X is None else f'is linked to {regions!r}, and no shapes are its cells'}. "
            f"{describe('shapes', sdata.shapes)} Link it with TableModel.parse(adata, region=, region_key=, "
            "instance_key=)."
        )
    key, instances = link
    shapes = sdata.shapes[key]
    if UM not in get_transformation(shapes, get_all=True):
        raise ValueError(f"Shapes {key!r} are not registered in {UM!r}; add the scale with pp.set_scale.")
    shapes = sd.transform(shapes, to_coordinate_system=UM)
    counts = np.asarray(raw_counts(adata).sum(axis=1), dtype=np.float64).ravel()
    return shapes.loc[instances], counts
