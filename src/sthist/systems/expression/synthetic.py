"""Synthetic tiles that are trained on beside real rows: what they are, and which row each was made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sthist._messages import plain
from sthist._sample.verbs import opened
from sthist._settings import logger
from sthist._tables.expression import describe
from sthist._tables.synthetic import COLUMNS, UNNAMED
from sthist.regression.data.expression import expression_targets
from sthist.regression.data.inputs import Tissue, joined
from sthist.regression.data.targets import Targets, stacked
from sthist.regression.rows import expression_rows
from sthist.scale import TOLERANCE
from sthist.training.embeddings import is_folder, table_spec
from sthist.training.rows import SampleRows

if TYPE_CHECKING:
    from anndata import AnnData

    from sthist.regression.data.inputs import Inputs
    from sthist.systems.expression.model import ExpressionModel
    from sthist.tiles import TileSpec

CALL = "tl.synthesize"
"""What the record of a synthetic sample is of."""

RECORDED = ("central_sha256", "adapter_sha256", "guidance", "steps", "seed", "n")
"""What a model keeps of the synthetic samples that it was trained on."""

MOST_APART = 1e-2
"""Largest difference of two logarithms that are of the same expression, normalised alike."""

UPSAMPLED = 1.5
"""Factor up to which readers of tiles upsample."""


@dataclass(frozen=True, eq=False)
class SyntheticRows:
    """Rows of synthetic samples, which stand behind the real ones."""

    rows: SampleRows
    first: int  # row at which they begin
    source: np.ndarray  # (n,) the real row that each was made of; -1 for none of them

    def beside(self, trained: np.ndarray) -> np.ndarray:
        """Rows to train on beside real ones: those that were made of these, or of none of the real rows."""
        return self.first + np.flatnonzero((self.source < 0) | np.isin(self.source, trained))

    def facts(self) -> dict[str, Any]:
        """What a model keeps of them; plain values."""
        made = [_record(adata) for adata in self.rows.tables]
        return {"samples": [{name: plain(each[name]) for name in RECORDED if name in each} for each in made]}


def synthetic_rows(synthetic: Any, real: SampleRows, targets: Targets) -> tuple[SyntheticRows, Targets]:
    """Rows of one synthetic sample or several, and targets of real and synthetic rows; refuses what cannot be meant."""
    given = _by_name(synthetic)
    _require_apart(given, real)
    rows = expression_rows(given, None, None)
    for adata, name in zip(rows.tables, rows.names, strict=True):
        lacking = [column for column in COLUMNS if column not in adata.obs]
        if lacking or not adata.obs["synthetic"].to_numpy().all():
            raise ValueError(
                f"{_upper(name)} is not of a synthetic sample: "
                f"{f'obs has no column {lacking[0]!r}' if lacking else 'some rows are not marked as synthetic'}. "
                "synthetic= is what tl.synthesize has made; real samples belong into data."
            )
    names = targets.names
    try:
        made = expression_targets(rows, names, may_lack=True)
    except ValueError as error:
        raise ValueError(
            f"The synthetic tiles have none of the genes to predict, or no expression: {error} tl.adapt_local(..., "
            "genes=) says of which genes tiles are made."
        ) from None
    _say_lacking(made, rows)
    source = _sources(rows, real)
    _require_alike(rows, made, real, targets, source)
    return SyntheticRows(rows, len(targets), source), stacked(targets, made)


def require_alone(model: ExpressionModel) -> None:
    """Refuse a model that looks at more of a region than its tile."""
    if model.looks_around:
        raise ValueError(
            f"{type(model).__name__}, as it is set, looks at what is around a region, or at its place, and synthetic "
            "tiles have neither: leave synthetic= out, or take a model of tiles or embeddings alone, such as 'resnet', "
            "'ridge' or 'mlp'."
        )


def collected(model: ExpressionModel, real: Inputs, synthetic: SyntheticRows, **where: Any) -> Inputs:
    """What a model takes of real and synthetic rows; it has collected the real ones, which settled its tiles."""
    _require_sharp(model, synthetic.rows, tiles=isinstance(real, Tissue))
    _say_stain(synthetic.rows)
    rows = synthetic.rows
    if isinstance(real, Tissue) and model.spec is not None:
        rows = _read_at(rows, model.spec)
    return joined(real, model.collect(rows, **where))


def _by_name(synthetic: Any) -> dict[str, Any]:
    """Synthetic samples by name."""
    if isinstance(synthetic, Mapping):
        given = dict(synthetic)
    elif isinstance(synthetic, list | tuple):
        given = {"synthetic" if i == 0 else f"synthetic {i + 1}": each for i, each in enumerate(synthetic)}
    else:
        given = {"synthetic": synthetic}
    if not given:
        raise ValueError("synthetic= is empty: give samples of tl.synthesize, or leave it out.")
    return {plain(name): opened(each) for name, each in given.items()}


def _require_apart(synthetic: dict[str, Any], real: SampleRows) -> None:
    """Refuse a sample that is given as both: it would be scored."""
    for name, each in synthetic.items():
        tables = [each] if hasattr(each, "obs_names") else list(each.tables.values())
        for sample, adata in zip(real.samples, real.tables, strict=True):
            if sample.data is each or any(adata is table for table in tables):
                raise ValueError(f"Sample {sample.name!r} is given as data, and as synthetic={name!r}, too.")
    for sample, adata in zip(real.samples, real.tables, strict=True):
        if "synthetic" in adata.obs and adata.obs["synthetic"].to_numpy().any():
            raise ValueError(
                f"Sample {sample.name!r} of data is synthetic, and would be scored as if it were measured: give it "
                "with synthetic= alone."
            )


def _say_lacking(made: Targets, rows: SampleRows) -> None:
    """Say which of the genes to predict synthetic tiles know nothing of."""
    for there, name in zip(made.measured, rows.names, strict=True):
        lacking = [gene for gene, each in zip(made.names, there, strict=True) if not each]
        if lacking:
            say = logger.warning if len(lacking) > len(made.names) / 2 else logger.info
            say(
                "%s lacks %d of the %d genes to predict, such as %r: its tiles do not count for them. genes= names the "
                "others alone.",
                _upper(name),
                len(lacking),
                len(made.names),
                lacking[0],
            )


def _sources(rows: SampleRows, real: SampleRows) -> np.ndarray:
    """The real row that each synthetic one was made of, by sample and name; -1 for none.

    A table alone does not know its sample: then the name of the spot decides.
    """
    places: dict[tuple[str, str], int] = {}
    by_name: dict[str, list[int]] = {}
    for place, (sample, row) in enumerate(zip(real.sample, real.row, strict=True)):
        spot = str(real.tables[sample].obs_names[row])
        places[(real.samples[sample].name, spot)] = place
        by_name.setdefault(spot, []).append(place)
    nameless = [sample.name for sample in real.samples] == [UNNAMED]
    found = np.empty(len(rows), int)
    said = [[adata.obs[column].astype(str).to_numpy() for column in ("sample", "source")] for adata in rows.tables]
    for at, (number, row) in enumerate(zip(rows.sample, rows.row, strict=True)):
        sample, spot = (column[row] for column in said[number])
        place = places.get((sample, spot), -1)
        if place < 0 and (nameless or sample == UNNAMED):
            alike = by_name.get(spot, [])
            if len(alike) > 1:
                raise ValueError(
                    f"{_upper(rows.names[number])} does not say of which sample its spots are, and {len(alike)} of the "
                    f"samples have a spot {spot!r}: synthesize from the same mapping of samples that is trained on."
                )
            place = alike[0] if alike else -1
        found[at] = place
    if (found < 0).all():
        logger.warning(
            "None of the spots that the synthetic tiles were made of is among the rows that are trained on: all folds "
            "are trained on all of them. If they are of the same tissue under another name, scores are too good."
        )
    return found


def _require_alike(rows: SampleRows, made: Targets, real: SampleRows, targets: Targets, source: np.ndarray) -> None:
    """Refuse expression that was normalised otherwise: of the same spot, or, of others, by what is known of it."""
    for number, name in enumerate(rows.names):
        mine = np.flatnonzero((rows.sample == number) & (source >= 0))
        if not len(mine):
            _require_same_record(rows.tables[number], name, real)
            continue
        spots, first = np.unique(source[mine], return_index=True)
        one, other = made.dense(mine[first]), targets.dense(spots)
        known = made.measured[number] & targets.measured[targets.sample[spots]]
        apart = np.where(known, np.abs(one - other), 0)
        if apart.max() > MOST_APART:
            place, gene = (int(each) for each in np.unravel_index(apart.argmax(), apart.shape))
            spot = real.tables[real.sample[spots[place]]].obs_names[real.row[spots[place]]]
            raise ValueError(
                f"{_upper(name)} has tiles of {one[place, gene]:.4g} of the gene {made.names[gene]!r} that were made "
                f"of the spot {plain(spot)!r}, which has {other[place, gene]:.4g}: expression was normalised otherwise "
                "when they were made, or over other genes. Normalise once (pp.genes), and then adapt, synthesize and "
                "train."
            )


def _require_same_record(adata: AnnData, name: str, real: SampleRows) -> None:
    found = describe(adata)
    for table, other in zip(real.tables, real.names, strict=True):
        known = describe(table)
        if " at " in found and " at " in known and found != known:
            raise ValueError(
                f"{_upper(name)} has {found}; {other} {known}. Normalise all in one way, with pp.genes, and make the "
                "tiles anew."
            )


def _require_sharp(model: ExpressionModel, rows: SampleRows, *, tiles: bool) -> None:
    """Refuse synthetic tiles of another size, or that are coarser than those that the model reads of real slides."""
    spec = model.spec
    for adata, name in zip(rows.tables, rows.names, strict=True):
        laid = table_spec(adata)
        if spec is None or laid is None:
            continue
        if abs(laid.size_um / spec.size_um - 1) > TOLERANCE:
            raise ValueError(
                f"The tiles of {name} show {laid.size_um:g} µm, and {type(model).__name__} is for tiles of "
                f"{spec.size_um:g} µm. {_mend(model, laid, tiles=tiles)}"
            )
        if laid.mpp / spec.mpp > 1 + TOLERANCE:
            problem = (
                f"The tiles of {name} are {laid.px} px wide, and {type(model).__name__} reads real ones at {spec.px} "
                f"px: they differ in sharpness, by which a predictor tells them apart. "
                f"{_mend(model, laid, tiles=tiles)}"
            )
            if laid.mpp / spec.mpp > UPSAMPLED:
                raise ValueError(problem)
            logger.warning("%s", problem)


def _say_stain(rows: SampleRows) -> None:
    """Say of tiles in the stain of a central model that real ones have to be in it, too."""
    for adata, name in zip(rows.tables, rows.names, strict=True):
        if _record(adata).get("stain"):
            logger.warning(
                "The tiles of %s are in the stain that their central model was trained in: real ones have to be "
                "normalised to it, too (pp.stain_normalize(..., reference=, key_added=) and image=; for embeddings "
                "pp.embed(..., normalizer=)), or a predictor tells them apart.",
                name,
            )


def _mend(model: ExpressionModel, laid: TileSpec, *, tiles: bool) -> str:
    """How real tiles are read as the synthetic ones are."""
    wanted = f"sthist.tiles.TileSpec({laid.size_um:g}, {laid.px})"
    if tiles:
        config = f"sthist.models.{type(model.config).__name__}"
        return f"Take the size of the central model's tiles for both: model={config}(spec={wanted})."
    return f"Embed real and synthetic ones alike: pp.embed(..., spec={wanted}, overwrite=True)."


def _read_at(rows: SampleRows, spec: TileSpec) -> SampleRows:
    """The same rows, whose tiles are to be read on as many pixels as real ones."""
    tables = []
    for adata in rows.tables:
        if table_spec(adata) is not None and not is_folder(adata):
            adata = adata.copy()
            adata.uns["tile_spec"] = spec.to_dict()
        tables.append(adata)
    return SampleRows(rows.samples, tables, rows.names, rows.sample, rows.row)


def _record(adata: AnnData) -> dict[str, Any]:
    """What is recorded of how tiles were made."""
    records = [each for each in adata.uns.get("sthist", {}).values() if isinstance(each, Mapping)]
    return dict(next((each for each in records if each.get("call") == CALL), {}))


def _upper(name: str) -> str:
    return name[0].upper() + name[1:]
