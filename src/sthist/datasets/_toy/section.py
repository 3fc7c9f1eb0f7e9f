"""A section that never was: ducts, stroma and immune aggregates, with all that Xenium and a scanner would give."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist import _sample, stains
from sthist.datasets._toy import kinds, render

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from shapely.geometry.base import BaseGeometry
    from spatialdata import SpatialData


@dataclass(frozen=True)
class CellType:
    """A cell type of the toy sample: its region and share of the cells there, its nucleus, its mean transcripts."""

    region: str
    share: float
    nucleus_um: tuple[float, float]  # half axes
    counts: float


CELL_TYPES = {
    "epithelial": CellType("duct", 1.0, (4.2, 3.3), 110),
    "fibroblast": CellType("stroma", 0.75, (6.0, 1.8), 45),
    "endothelial": CellType("stroma", 0.13, (5.0, 1.6), 45),
    "macrophage": CellType("stroma", 0.12, (4.0, 3.0), 80),
    "T cell": CellType("immune", 0.6, (2.8, 2.6), 35),
    "B cell": CellType("immune", 0.4, (3.0, 2.8), 35),
}
SPACING_UM = {"duct": 9.5, "stroma": 22.0, "immune": 7.6}
MARKERS = {
    "epithelial": ["EPCAM", "KRT8", "KRT18", "CDH1", "MUC1", "ESR1", "GATA3", "TFF1"],
    "fibroblast": ["COL1A1", "COL1A2", "DCN", "LUM", "PDGFRB", "FAP", "POSTN", "FBLN1"],
    "endothelial": ["PECAM1", "VWF", "CDH5", "KDR", "CLDN5", "ESAM", "EGFL7", "RAMP2"],
    "macrophage": ["CD68", "CD163", "CSF1R", "LYZ", "MRC1", "C1QA", "C1QB", "FCGR3A"],
    "T cell": ["CD3D", "CD3E", "CD8A", "CD4", "IL7R", "TRAC", "GZMB", "FOXP3"],
    "B cell": ["MS4A1", "CD79A", "CD79B", "CD19", "BANK1", "TCL1A", "CD22", "PAX5"],
}
HOUSEKEEPING = ["ACTB", "GAPDH", "B2M", "EEF1A1", "RPLP0", "TPT1", "UBC", "MALAT1", "FTH1", "TMSB4X", "PPIA", "RPS18"]
CONTROLS = [
    "NegControlProbe_00001",
    "NegControlProbe_00002",
    "NegControlCodeword_0500",
    "BLANK_0001",
    "UnassignedCodeword_0001",
]
LEAST_SIZE_UM = {"xenium": 100, "visium": 300, "cosmx": 100, "tma": 600}
LOW_QV, CONTROL_SHARE, AMBIENT_SHARE = 0.12, 0.01, 0.03
HE_ROTATION_DEG, HE_SHIFT_UM = 2.0, (12.0, -8.0)
HE_VECTORS = np.array([[0.60, 0.72, 0.35], [0.17, 0.95, 0.26]])


def toy(
    kind: Literal["xenium", "visium", "cosmx", "tma"] = "xenium",
    *,
    size_um: float = 2000.0,
    mpp: float = 0.5,
    seed: int = 0,
) -> SpatialData:
    """A simulated section with all that a spatial platform and a slide scanner give, made in seconds.

    Epithelial ducts around white lumina, immune aggregates, and stroma with fibroblasts, endothelium and macrophages,
    on empty glass. Nothing in it is real; regions, cells, cell types and the H&E alignment are known exactly.

    Parameters
    ----------
    kind
        ``"xenium"``: nuclear stain, transcripts, cells and H&E. ``"visium"``: H&E, and spots with counts. ``"cosmx"``:
        as Xenium, the nuclear stain in 2 x 2 fields of view, without H&E. ``"tma"``: as Xenium, on a microarray of 3 x
        3 cores of which one is missing and one broken.
    size_um
        Side of the square field in micrometres.
    mpp
        Micrometres per pixel of both images.
    seed
        The same seed gives the same sample.

    Returns
    -------
    A SpatialData in memory, registered in ``um`` and, as Xenium is, in ``global`` (pixels of the nuclear stain):

    * ``images["morphology_focus"]``: DAPI, uint16, with blur, noise and background; for ``"cosmx"``, ``"1_image"`` to
      ``"4_image"``;
    * ``images["he"]``: H&E, uint8, turned by 2 degrees and shifted against DAPI, registered;
    * ``points["transcripts"]``: ``x``, ``y``, ``z``, ``feature_name`` (60 genes and controls), ``qv``, ``cell_id``,
      ``overlaps_nucleus``;
    * ``shapes["cell_boundaries"]``, ``shapes["nucleus_boundaries"]``;
    * ``shapes["regions"]``: true polygons with ``label`` (``duct``, ``immune``, ``stroma``);
    * ``tables["table"]``: counts of transcripts with qv >= 20 in cells, ``obs["cell_type"]``, ``obsm["spatial"]`` in
      µm;
    * for ``"visium"``, in place of transcripts and cells, ``shapes["spots"]`` and a ``tables["table"]`` of them with
      ``obs["array_row"]``, ``obs["array_col"]``, ``obs["n_cells"]`` and ``obsm["cell_abundance"]``, the true numbers
      of cells of each type; for ``"tma"`` also ``shapes["cores"]`` with ``row``, ``column`` and ``state``.

    Raises
    ------
    ValueError
        If ``kind`` is unknown, or ``size_um`` less than 100.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=200)
    >>> sorted(sdata.shapes), sdata["table"].n_vars
    (['cell_boundaries', 'nucleus_boundaries', 'regions'], 60)
    """
    if kind not in LEAST_SIZE_UM:
        raise ValueError(f"kind is {kind!r}; known are {list(LEAST_SIZE_UM)}.")
    if not size_um >= LEAST_SIZE_UM[kind]:
        raise ValueError(f"size_um is {size_um!r}; a sample of kind {kind!r} needs at least {LEAST_SIZE_UM[kind]} µm.")
    rng = np.random.default_rng(seed)
    regions = _regions(size_um, rng, kinds.cores(size_um) if kind == "tma" else None)
    cells = _cells(regions, size_um, rng)
    transcripts = _transcripts(cells, size_um, rng)
    n_px = round(size_um / mpp)
    scene = render.Scene(cells, regions, n_px, mpp, rng)
    dapi = scene.dapi()
    to_um = np.diag([mpp, mpp, 1.0])
    he_to_um = _turn(size_um) @ to_um
    he = stains.to_rgb(scene.stain_amounts(he_to_um), HE_VECTORS / np.linalg.norm(HE_VECTORS, axis=1, keepdims=True))
    sdata = _assemble(dapi, he, he_to_um, transcripts, cells, regions, mpp)
    if kind == "visium":
        kinds.to_visium(sdata, list(CELL_TYPES))
    elif kind == "cosmx":
        kinds.to_cosmx(sdata, mpp)
    elif kind == "tma":
        kinds.add_cores(sdata, size_um)
    return sdata


def _regions(
    size: float, rng: np.random.Generator, cores: dict[tuple[int, int], BaseGeometry] | None
) -> dict[str, BaseGeometry]:
    """Ducts (with their lumina), immune aggregates, stroma and lumina as polygons.

    On one piece of tissue or on cores.
    """
    import shapely

    outline = (
        _blob((size / 2, size / 2), 0.46 * size, 0.04, rng)
        if cores is None
        else shapely.union_all(list(cores.values()))
    )
    n_ducts = max(1, round(10 * (size / 2000) ** 2))
    n_immune = max(1, round(5 * (size / 2000) ** 2))
    largest = min((0.16 if cores is None else 0.07) * size, 210.0)
    taken = shapely.Polygon()
    shapes: dict[str, list[BaseGeometry]] = {"duct": [], "immune": []}
    for kind, number, low, high in (("duct", n_ducts, 0.55, 1.0), ("immune", n_immune, 0.4, 0.7)):
        for _ in range(60 * number):
            if len(shapes[kind]) == number:
                break
            blob = _blob(rng.uniform(0, size, 2), rng.uniform(low, high) * largest, 0.12, rng)
            if outline.contains(blob) and not taken.intersects(blob.buffer(12)):
                shapes[kind].append(blob)
                taken = taken.union(blob)
    lumina = [duct.buffer(-max(18.0, 0.45 * np.sqrt(duct.area / np.pi))) for duct in shapes["duct"]]
    return {
        "duct": shapely.union_all(shapes["duct"]),
        "immune": shapely.union_all(shapes["immune"]),
        "stroma": outline.difference(taken),
        "lumen": shapely.union_all([lumen for lumen in lumina if not lumen.is_empty]),
    }


def _blob(centre: object, radius: float, roughness: float, rng: np.random.Generator) -> BaseGeometry:
    """A smooth closed outline around a centre."""
    import shapely

    angle = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    waves = sum(
        rng.normal(0, roughness / order) * np.cos(order * angle + rng.uniform(0, 2 * np.pi)) for order in range(2, 6)
    )
    stretch = rng.uniform(1 - 2 * roughness, 1 + 2 * roughness)
    x, y = radius * (1 + waves) * np.cos(angle) * stretch, radius * (1 + waves) * np.sin(angle) / stretch
    return shapely.Polygon(np.c_[x, y] + np.asarray(centre)).buffer(0)


def _cells(regions: dict[str, BaseGeometry], size: float, rng: np.random.Generator) -> pd.DataFrame:
    """One row per cell: type, centre, half axes and angle of the nucleus."""
    import pandas as pd
    import shapely

    frames = []
    solid = {"duct": regions["duct"].difference(regions["lumen"].buffer(4)), "immune": regions["immune"]}
    solid["stroma"] = regions["stroma"].buffer(-3)
    for region, spacing in SPACING_UM.items():
        rows, columns = np.meshgrid(*(np.arange(0, size + spacing, spacing),) * 2, indexing="ij")
        lattice = np.stack([columns + (rows / spacing % 2) * spacing / 2, rows], -1).reshape(-1, 2)
        centres = lattice + rng.normal(0, 0.17 * spacing, lattice.shape)
        centres = centres[shapely.contains_xy(solid[region], *centres.T)]
        names = [name for name, kind in CELL_TYPES.items() if kind.region == region]
        kinds = rng.choice(names, len(centres), p=[CELL_TYPES[name].share for name in names])
        axes = np.array([CELL_TYPES[name].nucleus_um for name in kinds]).reshape(-1, 2)
        axes = axes * rng.lognormal(0, 0.12, axes.shape)
        # Stroma runs in waves; its nuclei lie along it.
        along = 0.5 * np.sin(centres[:, 0] / 180) + 0.4 * np.cos(centres[:, 1] / 140)
        angle = along + rng.normal(0, 0.25, len(centres)) if region == "stroma" else rng.uniform(0, np.pi, len(centres))
        frame = pd.DataFrame(np.c_[centres, axes, angle], columns=["x", "y", "a", "b", "angle"])
        frames.append(frame.assign(cell_type=kinds))
    cells = pd.concat(frames, ignore_index=True)
    cells = cells[(cells.x > 0) & (cells.y > 0) & (cells.x < size) & (cells.y < size)].reset_index(drop=True)
    cells.index = pd.Index([f"cell_{i:06d}" for i in range(len(cells))], name="cell_id")
    return cells


def _outlines(cells: pd.DataFrame, grow_um: float) -> np.ndarray:
    """Ellipses around the nuclei, grown by a margin, as an array of polygons."""
    import shapely

    turn = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    a, b, angle = (cells[name].to_numpy()[:, None] for name in ("a", "b", "angle"))
    u, v = (a + grow_um) * np.cos(turn), (b + grow_um) * np.sin(turn)
    x = cells.x.to_numpy()[:, None] + u * np.cos(angle) - v * np.sin(angle)
    y = cells.y.to_numpy()[:, None] + u * np.sin(angle) + v * np.cos(angle)
    return shapely.polygons(np.stack([x, y], -1))


CELL_MARGIN_UM = 2.2


def expression_profiles(rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
    """Genes, and the share of each in the RNA of each cell type, (types, genes)."""
    genes = [gene for markers in MARKERS.values() for gene in markers] + HOUSEKEEPING
    profile = np.full((len(CELL_TYPES), len(genes)), 0.05)
    for row, name in enumerate(CELL_TYPES):
        for gene in MARKERS[name]:
            profile[row, genes.index(gene)] = rng.gamma(4.0, 1.0)
        profile[row, -len(HOUSEKEEPING) :] = rng.gamma(4.0, 0.3, len(HOUSEKEEPING))
    return genes, profile / profile.sum(1, keepdims=True)


def mean_counts(cell_types: Any) -> np.ndarray:
    """Mean number of transcripts of cells of these types."""
    return np.array([CELL_TYPES[name].counts for name in cell_types])


def draw_owners(means: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The cell of each transcript: how many a cell has is drawn around its mean."""
    return np.repeat(np.arange(len(means)), rng.poisson(means * rng.gamma(6.0, 1 / 6.0, len(means))))


def draw_genes(cell_types: Any, owner: np.ndarray, profile: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The gene of each transcript, from the profile of its cell's type."""
    import pandas as pd

    kinds = pd.Categorical(cell_types, categories=list(CELL_TYPES)).codes[owner]
    cumulative = np.cumsum(profile, 1)
    genes = np.empty(len(owner), np.int64)
    for kind in range(len(CELL_TYPES)):
        of_kind = kinds == kind
        genes[of_kind] = np.searchsorted(cumulative[kind], rng.uniform(size=of_kind.sum()) * cumulative[kind, -1])
    return genes


def free_numbers(n: int) -> tuple[int, int]:
    """How many molecules of genes and of controls lie outside of cells, for n in cells."""
    return int(AMBIENT_SHARE * n), max(1, int(CONTROL_SHARE * n))


def draw_free_genes(n: int, n_genes: int, rng: np.random.Generator) -> np.ndarray:
    """Genes, and after them controls, of the molecules outside of cells, for n in cells."""
    n_ambient, n_control = free_numbers(n)
    return np.r_[rng.integers(0, n_genes, n_ambient), n_genes + rng.integers(0, len(CONTROLS), n_control)]


def draw_quality(n: int, rng: np.random.Generator) -> np.ndarray:
    """Quality values of n transcripts, a share of which is low."""
    return np.where(rng.uniform(size=n) < LOW_QV, rng.uniform(3, 20, n), rng.uniform(20, 40, n)).astype(np.float32)


def count_table(transcripts: pd.DataFrame, obs: pd.DataFrame) -> AnnData:
    """Good transcripts of genes, not of controls, counted by cell."""
    import anndata as ad
    import pandas as pd
    from scipy.sparse import csr_matrix

    genes = [name for name in transcripts.feature_name.cat.categories if name not in CONTROLS]
    counted = transcripts[
        (transcripts.qv >= 20) & (transcripts.cell_id != "UNASSIGNED") & transcripts.feature_name.isin(genes)
    ]
    rows = pd.Categorical(counted.cell_id, categories=obs.index).codes
    columns = pd.Categorical(counted.feature_name, categories=genes).codes
    counts = csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=(len(obs), len(genes)))
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=genes))


def _transcripts(cells: pd.DataFrame, size: float, rng: np.random.Generator) -> pd.DataFrame:
    """One row per molecule, in the columns of Xenium; x, y and z in µm."""
    import pandas as pd

    genes, profile = expression_profiles(rng)
    owner = draw_owners(mean_counts(cells.cell_type), rng)
    gene = draw_genes(cells.cell_type, owner, profile, rng)
    radius, turn = np.sqrt(rng.uniform(size=len(owner))), rng.uniform(0, 2 * np.pi, len(owner))
    a, b, angle, cx, cy = (cells[name].to_numpy()[owner] for name in ("a", "b", "angle", "x", "y"))
    u, v = radius * np.cos(turn) * (a + CELL_MARGIN_UM), radius * np.sin(turn) * (b + CELL_MARGIN_UM)
    x, y = cx + u * np.cos(angle) - v * np.sin(angle), cy + u * np.sin(angle) + v * np.cos(angle)
    in_nucleus = (u / a) ** 2 + (v / b) ** 2 < 1
    free_gene = draw_free_genes(len(x), len(genes), rng)
    n_free = len(free_gene)
    anchor = rng.integers(0, len(cells), n_free)  # molecules without a cell drift off cells
    n = len(x) + n_free
    frame = pd.DataFrame(
        {
            "x": np.r_[x, cells.x.to_numpy()[anchor] + rng.normal(0, 12, n_free)],
            "y": np.r_[y, cells.y.to_numpy()[anchor] + rng.normal(0, 12, n_free)],
            "z": rng.uniform(10, 20, n).astype(np.float32),
            "feature_name": pd.Categorical.from_codes(np.r_[gene, free_gene], categories=pd.Index(genes + CONTROLS)),
            "cell_id": pd.Categorical(np.r_[cells.index.to_numpy()[owner], np.full(n_free, "UNASSIGNED")]),
            "overlaps_nucleus": np.r_[in_nucleus, np.zeros(n_free, bool)].astype(np.uint8),
            "qv": draw_quality(n, rng),
        }
    )
    inside = frame.x.between(0, size, inclusive="left") & frame.y.between(0, size, inclusive="left")
    return frame[inside].sample(frac=1, random_state=int(rng.integers(2**31))).reset_index(drop=True)


def _turn(size: float) -> np.ndarray:
    """(3, 3): the H&E's own µm to the sample's: a small rotation about the middle, and a shift."""
    cos, sin = np.cos(np.deg2rad(HE_ROTATION_DEG)), np.sin(np.deg2rad(HE_ROTATION_DEG))
    about = np.array([[1, 0, size / 2], [0, 1, size / 2], [0, 0, 1.0]])
    shift = np.array([[1, 0, HE_SHIFT_UM[0]], [0, 1, HE_SHIFT_UM[1]], [0, 0, 1.0]])
    return shift @ about @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]]) @ np.linalg.inv(about)


def _assemble(
    dapi: np.ndarray,
    he: np.ndarray,
    he_to_um: np.ndarray,
    transcripts: pd.DataFrame,
    cells: pd.DataFrame,
    regions: dict[str, BaseGeometry],
    mpp: float,
) -> SpatialData:
    import geopandas as gpd
    import pandas as pd
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, PointsModel, ShapesModel, TableModel
    from spatialdata.transformations import Affine, Identity, Scale

    to_px = np.diag([1 / mpp, 1 / mpp, 1.0])
    affine = partial(Affine, input_axes=("x", "y"), output_axes=("x", "y"))
    from_um = {"um": Identity(), "global": Scale([1 / mpp, 1 / mpp], ("x", "y"))}
    factors = [2] * max(0, int(np.ceil(np.log2(dapi.shape[-1] / 1024)))) or None
    chunks = {"c": 3, "y": 512, "x": 512}
    placed = {
        "morphology_focus": (dapi[None], ["DAPI"], {"um": Scale([mpp, mpp], ("x", "y")), "global": Identity()}),
        "he": (
            he.transpose(2, 0, 1),
            ["r", "g", "b"],
            {"um": affine(he_to_um), "global": affine(to_px @ he_to_um)},
        ),
    }
    obs = pd.DataFrame(
        {
            "region": pd.Categorical(["cell_boundaries"] * len(cells)),
            "instance_id": cells.index.to_numpy(),
            "cell_type": pd.Categorical(cells.cell_type, categories=list(CELL_TYPES)),
        },
        index=cells.index.astype(str).rename(None),
    )
    table = count_table(transcripts, obs)
    table.obsm["spatial"] = cells[["x", "y"]].to_numpy()
    labels = [label for label in ("duct", "immune", "stroma") if not regions[label].is_empty]
    parts = [(label, part) for label in labels for part in getattr(regions[label], "geoms", [regions[label]])]
    sdata = SpatialData(
        images={
            key: Image2DModel.parse(
                pixels,
                dims=("c", "y", "x"),
                c_coords=channels,
                scale_factors=factors,
                chunks=chunks,
                transformations=transformations,
            )
            for key, (pixels, channels, transformations) in placed.items()
        },
        points={"transcripts": PointsModel.parse(transcripts, feature_key="feature_name", transformations=from_um)},
        shapes={
            name: ShapesModel.parse(frame, transformations=from_um)
            for name, frame in {
                "cell_boundaries": gpd.GeoDataFrame(geometry=_outlines(cells, CELL_MARGIN_UM), index=cells.index),
                "nucleus_boundaries": gpd.GeoDataFrame(geometry=_outlines(cells, 0.0), index=cells.index),
                "regions": gpd.GeoDataFrame(
                    {"label": pd.Categorical([label for label, _ in parts])}, geometry=[part for _, part in parts]
                ),
            }.items()
        },
        tables={
            "table": TableModel.parse(table, region="cell_boundaries", region_key="region", instance_key="instance_id")
        },
    )
    _sample.set_role(sdata, "nuclear", {"images": ["morphology_focus"], "channel": "DAPI"})
    _sample.set_role(sdata, "he", {"image": "he"})
    _sample.set_role(sdata, "transcripts", {"points": "transcripts", "gene": "feature_name"})
    _sample.set_role(sdata, "cells", {"table": "table"})
    return sdata
