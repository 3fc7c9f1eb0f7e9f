"""High-resolution spatial transcriptomics simulated on real histology."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sthist import stains
from sthist._imaging.nuclei import above_surroundings, contrast_of, iter_blocks, segment_nuclei
from sthist._imaging.tissue import clean, mask_of_he, not_stain
from sthist._sample import set_role
from sthist._settings import settings
from sthist.datasets._toy.section import (
    CONTROLS,
    count_table,
    draw_free_genes,
    draw_genes,
    draw_owners,
    draw_quality,
    expression_profiles,
    free_numbers,
    mean_counts,
)

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from spatialdata import SpatialData

TISSUE_MPP = 4.0
DRIFT_UM = 3.0  # standard deviation of a transcript around a pixel of its nucleus: RNA fills the cytoplasm around it
FULL_SCALE = 12000.0  # grey level of the brightest nuclei; a camera of 16 bits leaves room above
SAMPLE_PX = 2_000_000
EOSIN_UM = 2.0
MOLECULES = ("cells", "eosin", "mixed")


def simulate_hrst(
    image: np.ndarray | str | Path,
    mpp: float,
    *,
    blur_um: float = 0.5,
    noise: float = 0.02,
    background: float = 0.03,
    transcripts_per_cell: float = 1.0,
    molecules: Literal["cells", "eosin", "mixed"] = "cells",
    seed: int | None = None,
) -> SpatialData:
    """A nuclear stain and transcripts on a real H&E, so that image translation can be trained and scored.

    **Real** is the H&E alone, its pixels unchanged. **Simulated** is all else: the nuclear stain is the haematoxylin of
    the H&E above that of the tissue around it, blurred, with haze, background and noise; nuclei are segmented from it;
    their cell type follows from their size, shape, darkness and crowding by simple rules, and nobody has checked it;
    transcripts of a panel of 60 genes are drawn by cell type and scattered over nucleus and cytoplasm. So the nuclear
    stain knows more of the H&E than a real one does (it is of the same section, without any shift), and the transcripts
    know less (no tissue biology but cell type). Scores on such data compare methods with each other; they do not
    predict scores on real pairs.

    Parameters
    ----------
    image
        Pixels, (h, w, 3) uint8, or an image file.
    mpp
        µm per pixel, at most 1.5.
    blur_um
        Standard deviation of the objective's blur, in µm.
    noise
        Standard deviation of the noise at full brightness, relative to it; it grows with the square root of the light.
    background
        Light from tissue without nuclei, relative to full brightness; glass has a third of it.
    transcripts_per_cell
        Factor on the mean number of transcripts of a cell, which is 35 to 110 by cell type.
    molecules
        Where transcripts come from: ``"cells"``, by cell type, as above; ``"eosin"``: as many, at random wherever the
        H&E has eosin, the more the more of it, and of genes that know nothing of the place; ``"mixed"``: half of each.
        Each favours models that were trained on the like of it; test with another than was trained on.
    seed
        Of every draw; ``settings.seed`` by default.

    Returns
    -------
    A SpatialData in memory, registered in ``um``, with

    * ``images["he"]``: the real H&E; ``images["dapi"]``: the simulated stain, uint16;
    * ``points["transcripts"]``: ``x``, ``y`` in µm, ``feature_name`` (genes and controls), ``qv``, ``cell_id``;
    * ``shapes["cells"]``: a disc per segmented nucleus, 2 µm wider than it;
    * ``tables["table"]``: counts of transcripts with qv >= 20; ``obs["cell_type"]``, ``obs["nucleus_area_um2"]``,
      ``obsm["spatial"]`` in µm;
    * ``attrs["sthist"]["simulated"]``: what is simulated, and the parameters.

    Raises
    ------
    ValueError
        If the image is no H&E of 8 bits, shows no tissue or no nuclei, or an argument is out of range.

    Examples
    --------
    >>> import sthist
    >>> toy = sthist.datasets.toy(size_um=200)
    >>> he = sthist.tiles.read_region(toy, "he", (0, 0, 200, 200), mpp=0.5, fill=255)
    >>> sdata = sthist.datasets.simulate_hrst(he, mpp=0.5)
    >>> sthist.tl.virtual_he(sdata)
    >>> sdata["virtual_he"].shape == sdata["he"].shape
    True
    """
    from sthist.io._parts.sample import read_he

    _require_ranges(mpp, blur_um, noise, background, transcripts_per_cell)
    if molecules not in MOLECULES:
        raise ValueError(f"molecules is {molecules!r}; it is one of {list(MOLECULES)}.")
    pixels = read_he(image, "he").pixels
    rgb = np.asarray(pixels).transpose(1, 2, 0)
    seed = settings.seed if seed is None else int(seed)
    section = _Section(rgb, mpp, seed)
    options = {"blur_um": blur_um, "noise": noise, "background": background}
    dapi, cells, owned = section.nuclear_stain(**options)
    if len(cells) == 0:
        raise ValueError("No nuclei were found in this image; is it H&E, and is mpp right?")
    rng = np.random.default_rng([seed, 1])
    cells["cell_type"] = cell_types(cells, rng)
    drawn = _molecules(cells, owned, section, transcripts_per_cell, rng)
    if molecules != "cells":
        drawn = _from_eosin(drawn, cells, section, 1.0 if molecules == "eosin" else 0.5, rng)
    facts = options | {"mpp": mpp, "transcripts_per_cell": transcripts_per_cell, "molecules": molecules, "seed": seed}
    return _assemble(rgb, dapi, mpp, cells, drawn, facts)


def _require_ranges(mpp: float, blur_um: float, noise: float, background: float, factor: float) -> None:
    ranges = {
        "mpp": (mpp, 0 < mpp <= 1.5, "more than 0 and at most 1.5 µm per pixel"),
        "blur_um": (blur_um, 0 <= blur_um <= 10, "from 0 to 10 µm"),
        "noise": (noise, 0 <= noise <= 1, "from 0 to 1"),
        "background": (background, 0 <= background <= 1, "from 0 to 1"),
        "transcripts_per_cell": (factor, 0 < factor < np.inf, "a positive number"),
    }
    for name, (value, fits, should) in ranges.items():
        if not fits:
            raise ValueError(f"{name} is {value!r}; it is {should}.")


class _Section:
    """A real H&E: its tissue, its stains, and what counts as the light of a nucleus."""

    def __init__(self, rgb: np.ndarray, mpp: float, seed: int) -> None:
        self.rgb, self.mpp, self.seed = rgb, mpp, seed
        step = max(1, round(TISSUE_MPP / mpp))
        coarse = rgb[::step, ::step]
        self._step = step
        self.mask = clean(mask_of_he(coarse, mpp * step), mpp * step, min_area_um2=600.0, max_hole_um2=2500.0)
        if not self.mask.any():
            raise ValueError("This image shows no tissue; is it H&E?")
        strange = not_stain(coarse, mpp * step)
        self.mask &= ~strange
        glass = coarse[~self.mask & ~strange]
        # Slides differ in the colour of their glass; what it absorbs is not stain.
        self.white = np.median(glass, axis=0) if len(glass) > 1000 else np.full(3, 255.0)
        sample = self._sample()
        self.vectors = stains.macenko(sample, white=self.white)
        whole_blocks = [outer for outer, inner in iter_blocks(rgb.shape[:2], mpp) if self._in_tissue(inner).any()]
        middle = self._haematoxylin(whole_blocks[len(whole_blocks) // 2])
        self.contrast = contrast_of(above_surroundings(middle, mpp))
        amounts = stains.concentrations(sample, self.vectors, white=self.white)[:, 0]
        self.base, self.top = (float(value) for value in np.quantile(amounts, [0.4, 0.995]))

    def _sample(self) -> np.ndarray:
        """Tissue pixels, evenly spread, about two million at most."""
        step = max(1, int(np.ceil(np.sqrt(self.rgb.shape[0] * self.rgb.shape[1] / SAMPLE_PX))))
        tissue = self._in_tissue((slice(0, self.rgb.shape[0]), slice(0, self.rgb.shape[1])), step)
        return self.rgb[::step, ::step][tissue]

    def _in_tissue(self, block: tuple[slice, slice], step: int = 1) -> np.ndarray:
        rows, columns = (np.arange(part.start, part.stop, step) // self._step for part in block)
        return self.mask[np.ix_(np.minimum(rows, len(self.mask) - 1), np.minimum(columns, self.mask.shape[1] - 1))]

    def _haematoxylin(self, block: tuple[slice, slice]) -> np.ndarray:
        return stains.concentrations(self.rgb[block], self.vectors, white=self.white)[..., 0]

    def eosin(self) -> tuple[np.ndarray, float]:
        """Eosin on the tissue in squares of about 2 µm, smoothed as far as RNA spreads, and their side in µm."""
        from scipy.ndimage import gaussian_filter

        step = max(1, round(EOSIN_UM / self.mpp))
        rows = []
        for first in range(0, self.rgb.shape[0] - step + 1, step):
            block = (slice(first, first + step), slice(0, self.rgb.shape[1] // step * step))
            amounts = stains.concentrations(self.rgb[block], self.vectors, white=self.white)[..., 1]
            rows.append((amounts * self._in_tissue(block)).reshape(step, -1, step).mean((0, 2)))
        side = step * self.mpp
        return gaussian_filter(np.stack(rows), EOSIN_UM / side), side

    def nuclear_stain(
        self, *, blur_um: float, noise: float, background: float
    ) -> tuple[np.ndarray, pd.DataFrame, list[np.ndarray]]:
        """The simulated stain (h, w) uint16, the nuclei in it, and the pixels (y, x) of each; block by block."""
        import pandas as pd
        from scipy.ndimage import gaussian_filter

        dapi = np.empty(self.rgb.shape[:2], np.uint16)
        frames, owned = [], []
        for number, (outer, inner) in enumerate(iter_blocks(self.rgb.shape[:2], self.mpp)):
            core = tuple(slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer, strict=True))
            tissue = self._in_tissue(outer)
            light = np.full(tissue.shape, background / 3, np.float32)
            if tissue.any():
                amounts = self._haematoxylin(outer)
                soft = gaussian_filter(tissue.astype(np.float32), 4.0 / self.mpp)
                nuclei = np.clip((amounts - self.base) / max(self.top - self.base, 1e-6), 0, 1.5) * soft
                sharp = gaussian_filter(nuclei, blur_um / self.mpp)
                haze = gaussian_filter(nuclei, 8.0 / self.mpp)
                light += 0.95 * sharp + 0.05 * haze + background * 2 / 3 * soft
                frame, places = self._nuclei(np.where(tissue, amounts, self.base), outer, inner)
                frames.append(frame)
                owned += places
            rng = np.random.default_rng([self.seed, 0, number])
            grain = rng.standard_normal(light[core].shape, np.float32) * noise * np.sqrt(np.maximum(light[core], 0.01))
            dapi[inner] = np.clip(np.round((light[core] + grain) * FULL_SCALE), 0, 65535)
        cells = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
        return dapi, cells, owned

    def _nuclei(self, amounts: np.ndarray, outer: tuple[slice, slice], inner: tuple[slice, slice]) -> Any:
        """Nuclei whose centre lies in a block: a row of measurements each, and their pixels in the image."""
        import pandas as pd
        from skimage.measure import regionprops

        rows, places = [], []
        for nucleus in regionprops(segment_nuclei(amounts, self.mpp, contrast=self.contrast), amounts):
            y, x = nucleus.centroid[0] + outer[0].start, nucleus.centroid[1] + outer[1].start
            if not (inner[0].start <= y < inner[0].stop and inner[1].start <= x < inner[1].stop):
                continue
            rows.append(
                {
                    "x": (x + 0.5) * self.mpp,
                    "y": (y + 0.5) * self.mpp,
                    "nucleus_area_um2": nucleus.area * self.mpp**2,
                    "aspect": nucleus.axis_major_length / max(nucleus.axis_minor_length, 1.0),
                    "haematoxylin": nucleus.intensity_mean,
                }
            )
            places.append(nucleus.coords + [outer[0].start, outer[1].start])
        return pd.DataFrame(rows), places


def cell_types(cells: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    """A cell type per nucleus by simple rules; what the rules leave open is drawn.

    Elongated nuclei are fibroblasts or endothelium, small and round ones in a crowd are T or B cells, large ones in a
    crowd are epithelial, and what is left is macrophages, fibroblasts or epithelial.

    Returns names of :data:`CELL_TYPES`, of shape (n,).
    """
    from scipy.spatial import cKDTree

    tree = cKDTree(cells[["x", "y"]])
    neighbours = tree.query_ball_point(tree.data, 20.0, return_length=True) - 1
    crowded = neighbours >= 6
    elongated = cells["aspect"].to_numpy() > 2.0
    small = cells["nucleus_area_um2"].to_numpy() < 32.0
    kind = rng.choice(["macrophage", "fibroblast", "epithelial"], len(cells), p=[0.3, 0.5, 0.2]).astype(object)
    kind[crowded & ~small & ~elongated] = "epithelial"
    lymphocyte = crowded & small & ~elongated
    kind[lymphocyte] = rng.choice(["T cell", "B cell"], int(lymphocyte.sum()), p=[0.6, 0.4])
    kind[elongated] = rng.choice(["fibroblast", "endothelial"], int(elongated.sum()), p=[0.85, 0.15])
    return kind.astype(str)


def _molecules(
    cells: pd.DataFrame, owned: list[np.ndarray], section: _Section, factor: float, rng: np.random.Generator
) -> pd.DataFrame:
    """One row per transcript: place in µm, gene, quality, cell."""
    import pandas as pd

    genes, profiles = expression_profiles(rng)
    # Larger nuclei belong to larger cells, which hold more RNA.
    size = np.sqrt(cells["nucleus_area_um2"] / cells["nucleus_area_um2"].median()).to_numpy()
    owner = draw_owners(mean_counts(cells["cell_type"]) * size * factor, rng)
    lengths = np.array([len(places) for places in owned])
    flat = np.concatenate(owned)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    pixel = flat[starts[owner] + (rng.uniform(size=len(owner)) * lengths[owner]).astype(np.int64)]
    place = (pixel[:, ::-1] + rng.uniform(size=pixel.shape)) * section.mpp + rng.normal(0, DRIFT_UM, pixel.shape)
    gene = draw_genes(cells["cell_type"], owner, profiles, rng)
    tissue = np.argwhere(section.mask)
    free = tissue[rng.integers(0, len(tissue), sum(free_numbers(len(owner))))][:, ::-1]
    free_place = (free + rng.uniform(size=free.shape)) * section.mpp * section._step
    free_gene = draw_free_genes(len(owner), len(genes), rng)
    xy, n = np.r_[place, free_place], len(place) + len(free_place)
    cell_names = pd.Categorical.from_codes(
        np.r_[owner, np.full(len(free), len(cells))], categories=pd.Index([*cells.index.astype(str), "UNASSIGNED"])
    )
    frame = pd.DataFrame(
        {
            "x_um": xy[:, 0],
            "y_um": xy[:, 1],
            "feature_name": pd.Categorical.from_codes(np.r_[gene, free_gene], categories=pd.Index([*genes, *CONTROLS])),
            "qv": draw_quality(n, rng),
            "cell_id": cell_names,
        }
    )
    height, width = (side * section.mpp for side in section.rgb.shape[:2])
    return frame[frame.x_um.between(0, width, "left") & frame.y_um.between(0, height, "left")].reset_index(drop=True)


def _from_eosin(
    drawn: pd.DataFrame, cells: pd.DataFrame, section: _Section, share: float, rng: np.random.Generator
) -> pd.DataFrame:
    """The same transcripts, a share of which lies wherever there is eosin, and belongs to the cell that is there."""
    import pandas as pd
    from scipy.spatial import cKDTree

    eosin, bin_um = section.eosin()
    frame = drawn.copy()
    moved = np.flatnonzero(rng.uniform(size=len(frame)) < share)
    cumulative = np.cumsum(eosin.ravel(), dtype=np.float64)
    bins = np.searchsorted(cumulative, rng.uniform(size=len(moved)) * cumulative[-1], side="right")
    rows, columns = np.unravel_index(np.minimum(bins, eosin.size - 1), eosin.shape)
    places = (np.c_[columns, rows] + rng.uniform(size=(len(moved), 2))) * bin_um
    distance, nearest = cKDTree(cells[["x", "y"]]).query(places)
    inside = distance < cell_radius(cells)[nearest]
    codes = frame["cell_id"].cat.codes.to_numpy().copy()
    codes[moved] = np.where(inside, nearest, len(cells))
    frame["cell_id"] = pd.Categorical.from_codes(codes, categories=frame["cell_id"].cat.categories)
    genes = frame["feature_name"].cat.codes.to_numpy().copy()
    genes[moved] = rng.permutation(genes[moved])
    frame["feature_name"] = pd.Categorical.from_codes(genes, categories=frame["feature_name"].cat.categories)
    frame.loc[frame.index[moved], ["x_um", "y_um"]] = places
    height, width = (side * section.mpp for side in section.rgb.shape[:2])
    return frame[frame.x_um.between(0, width, "left") & frame.y_um.between(0, height, "left")].reset_index(drop=True)


def cell_radius(cells: pd.DataFrame) -> np.ndarray:
    """Radius of the disc that stands for each cell, in µm: that of its nucleus, and 2 µm around it."""
    return np.sqrt(cells["nucleus_area_um2"].to_numpy() / np.pi) + 2.0


def _assemble(
    rgb: np.ndarray, dapi: np.ndarray, mpp: float, cells: pd.DataFrame, molecules: pd.DataFrame, facts: dict[str, Any]
) -> SpatialData:
    import geopandas as gpd
    import pandas as pd

    from sthist.io import assemble

    names = cells.index.astype(str)
    obs = cells.drop(columns=["x", "y"]).set_index(names)
    obs["cell_type"] = obs["cell_type"].astype("category")
    table = count_table(molecules, obs)
    outlines = gpd.GeoDataFrame(
        {"radius": cell_radius(cells)},
        geometry=gpd.points_from_xy(cells["x"], cells["y"]),
        index=pd.Index(names, name="cell_id"),
    )
    sdata = assemble(
        {"he": rgb, "dapi": dapi}, mpp=mpp, points=molecules, table=table, cells=outlines, gene="feature_name"
    )
    sdata.attrs["sthist"]["simulated"] = {"what": ["dapi", "transcripts", "cells", "table"], "real": ["he"]} | facts
    set_role(sdata, "he", {"image": "he"})
    return sdata
