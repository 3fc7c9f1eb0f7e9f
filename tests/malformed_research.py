"""Damaged copies of research data sets, and what is said of each.

``CASES`` holds a name, what damages a fresh copy and gives the call that fails, the error, and a pattern of its
message.
"""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import research
import tifffile
from PIL import Image

import sthist

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Read = Callable[[], Any]
    Case = tuple[str, Callable[[Path], Read], type[Exception], str]

SLIDE = "Human_Breast_ST_A1"
H5AD, TIFF, JSON = "st/TENX1.h5ad", "wsis/TENX1.tif", "metadata/TENX1.json"
COORD, COUNT = f"ST/coord/{SLIDE}_coord.csv", f"ST/gene_exp/{SLIDE}_count.csv"


def cut(name: str, share: float = 0.5) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[: int(share * len(content))])

    return damage


def remove(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda root: (root / name).write_text(text) and None


def hest(*damages: Callable[[Path], Any], **options: Any) -> Callable[[Path], Read]:
    """Damage a copy of HEST-1k, then read its sample."""

    def make(path: Path) -> Read:
        research.hest_copy(path, parts=True)
        for damage in damages:
            damage(path)
        return lambda: sthist.io.hest(path, "TENX1", **options)

    return make


def record(**changed: Any) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        research.hest_metadata(root / JSON, "TENX1", "Visium", 2.0, **changed)

    return damage


def without(name: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        content = json.loads((root / JSON).read_text())
        del content[name]
        (root / JSON).write_text(json.dumps(content))

    return damage


def table(change: Callable[[ad.AnnData], ad.AnnData | None]) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        adata = ad.read_h5ad(root / H5AD)
        changed = change(adata)
        (adata if changed is None else changed).write_h5ad(root / H5AD)

    return damage


def no_positions(adata: ad.AnnData) -> None:
    del adata.obsm["spatial"]


def nan_position(adata: ad.AnnData) -> None:
    adata.obsm["spatial"][4, 1] = np.nan


def one_column(adata: ad.AnnData) -> None:
    adata.obsm["spatial"] = adata.obsm["spatial"][:, :1]


def far_away(adata: ad.AnnData) -> None:
    adata.obsm["spatial"] += 300


def normalised(adata: ad.AnnData) -> None:
    adata.X = adata.X.log1p()


def negative(adata: ad.AnnData) -> None:
    adata.X = adata.X * -1


def same_barcode(adata: ad.AnnData) -> None:
    adata.obs_names = [adata.obs_names[1], *adata.obs_names[1:]]


def too_many(adata: ad.AnnData) -> None:
    adata.X = adata.X.astype(np.float64) * 2**31


def drop(*names: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        with h5py.File(root / H5AD, "a") as file:
            for name in names:
                del file[name]

    return damage


def transcripts(**changed: Any) -> Callable[[Path], None]:
    return lambda root: research.transcripts(root / "transcripts/TENX1_transcripts.parquet", **changed)


def stimage(*damages: Callable[[Path], Any], **options: Any) -> Callable[[Path], Read]:
    """Damage a copy of STimage-1K4M, then read its slide."""

    def make(path: Path) -> Read:
        research.stimage_copy(path)
        for damage in damages:
            damage(path)
        return lambda: sthist.io.stimage(path, SLIDE, **options)

    return make


def csv(name: str, change: Callable[[pd.DataFrame], pd.DataFrame], sep: str = ",") -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        frame = pd.read_csv(root / name, sep=sep, index_col=0, dtype=str)
        change(frame).to_csv(root / name, sep=sep)

    return damage


def cell(row: int, column: str, value: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame.loc[frame.index[row], column] = value
        return frame

    return change


def twice(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([frame, frame.iloc[:1]])


def renamed(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.set_axis([f"Other_{i}" for i in range(len(frame))])


def legacy(
    *damages: Callable[[Path], Any], dialect: str = "her2st", change: dict[str, Any] | None = None
) -> Callable[[Path], Read]:
    """Damage a section of legacy Spatial Transcriptomics, then read it."""

    def make(path: Path) -> Read:
        files, _ = getattr(research, f"{dialect}_files")(path)
        for damage in damages:
            damage(path)
        return lambda: sthist.io.legacy_st(**files | (change or {}))

    return make


def on_one_line(root: Path) -> None:
    file = root / "A1_selection.tsv"
    spots = pd.read_csv(file, sep="\t")
    spots[spots["y"] == 13].to_csv(file, sep="\t", index=False)


def exchanged_rows(root: Path) -> None:
    file = root / "A1_selection.tsv"
    spots = pd.read_csv(file, sep="\t")
    spots[["pixel_x", "pixel_y"]] = spots[["pixel_x", "pixel_y"]].sample(frac=1, random_state=0).to_numpy()
    spots.to_csv(file, sep="\t", index=False)


def small_picture(name: str) -> Callable[[Path], None]:
    return lambda root: Image.fromarray(np.full((90, 90, 3), 200, np.uint8)).save(root / name)


def grey_picture(name: str) -> Callable[[Path], None]:
    return lambda root: Image.fromarray(np.full((320, 460), 200, np.uint8)).save(root / name)


def spots_of(**columns: list[Any]) -> Callable[[Path], None]:
    return lambda root: pd.DataFrame(columns).to_csv(root / "A1_selection.tsv", sep="\t", index=False)


def cut_gzip(name: str) -> Callable[[Path], None]:
    """The end of the stream is lost, not only its checksum."""

    def damage(root: Path) -> None:
        text = gzip.decompress((root / name).read_bytes())
        (root / name).write_bytes(gzip.compress(text * 200)[:60])

    return damage


HEST: list[Case] = [
    (
        "hest: no such folder",
        lambda path: lambda: sthist.io.hest(path / "no"),
        FileNotFoundError,
        "There is no folder .*no",
    ),
    (
        "hest: no samples",
        lambda path: lambda: sthist.io.hest(path),
        FileNotFoundError,
        r"has no samples \(st/\*.h5ad",
    ),
    ("hest: no image", hest(remove(TIFF)), FileNotFoundError, "no wsis/TENX1.tif. Download it, or .* image=False"),
    (
        "hest: no metadata",
        hest(remove(JSON)),
        FileNotFoundError,
        "neither metadata/TENX1.json nor a table such as HEST",
    ),
    (
        "hest: not in the table of metadata",
        hest(remove(JSON), write("HEST_v1_1_0.csv", "id,organ\nTENX2,Lung\n")),
        KeyError,
        "HEST_v1_1_0.csv has no sample 'TENX1' in its column 'id'",
    ),
    ("hest: metadata cut", hest(cut(JSON)), ValueError, "TENX1.json cannot be read: .*truncated"),
    ("hest: metadata are a list", hest(write(JSON, "[1]")), ValueError, "TENX1.json holds no JSON object"),
    ("hest: no mpp", hest(without("pixel_size_um_estimated")), KeyError, "TENX1.json has no 'pixel_size_um_estimated'"),
    (
        "hest: empty mpp",
        hest(record(pixel_size_um_estimated=None)),
        ValueError,
        r"TENX1.json: 'pixel_size_um_estimated' is empty \('pixel_size_um_embedded' is 2.0\); give .* mpp=",
    ),
    (
        "hest: mpp is text",
        hest(record(pixel_size_um_estimated="0.5")),
        ValueError,
        "TENX1.json: 'pixel_size_um_estimated' is '0.5'; it should be a positive number",
    ),
    (
        "hest: mpp is NaN",
        hest(record(pixel_size_um_estimated=float("nan"))),
        ValueError,
        r"TENX1.json: 'pixel_size_um_estimated' is empty .* mpp=",
    ),
    (
        "hest: mpp contradicts the spots",
        hest(record(pixel_size_um_estimated=1.0)),
        ValueError,
        r"TENX1.h5ad: .*obsm\['spatial'\] are 50 px apart.*pixel_size_um_estimated of .*TENX1.json is 1. .* mpp=",
    ),
    ("hest: mpp= of nobody", hest(mpp={"TENX2": 1.0}), ValueError, "mpp= names 'TENX2', which is none of the samples"),
    (
        "hest: unknown technology",
        hest(record(st_technology="Slide-seq", spot_diameter=None)),
        ValueError,
        "TENX1.json: 'spot_diameter' is None; it should be a positive number",
    ),
    ("hest: table cut", hest(cut(H5AD)), ValueError, "TENX1.h5ad cannot be read: .*truncated"),
    ("hest: table is text", hest(write(H5AD, "no table")), ValueError, "TENX1.h5ad cannot be read"),
    (
        "hest: table without obs",
        hest(drop("obs")),
        ValueError,
        "TENX1.h5ad holds no table of counts as anndata writes it: .*obs",
    ),
    (
        "hest: table of another kind",
        hest(drop("X", "obs", "var", "obsm", "uns"), lambda root: h5py.File(root / H5AD, "a").create_group("matrix")),
        ValueError,
        "TENX1.h5ad holds no table of counts as anndata writes it",
    ),
    (
        "hest: no spots",
        hest(table(lambda adata: adata[:0].copy())),
        ValueError,
        r"TENX1.h5ad has no spots \(rows of obs",
    ),
    ("hest: no counts", hest(drop("X")), ValueError, "TENX1.h5ad has no counts: X is missing"),
    ("hest: no genes", hest(table(lambda adata: adata[:, :0].copy())), ValueError, "has no counts: X is 48 x 0"),
    (
        "hest: counts are logarithms",
        hest(table(normalised)),
        ValueError,
        "TENX1.h5ad: X should hold raw counts, .* spot '000x000' has 0.693147 of 'COL1A1'",
    ),
    ("hest: counts above int32", hest(table(too_many)), ValueError, "to 2147483647, but 96 values are none"),
    ("hest: negative counts", hest(table(negative)), ValueError, "X should hold raw counts.* has -1 of 'COL1A1'"),
    ("hest: barcode twice", hest(table(same_barcode)), ValueError, "TENX1.h5ad has barcode '000x002' more than once"),
    ("hest: no positions", hest(table(no_positions)), KeyError, r"TENX1.h5ad has no obsm\['spatial'\]"),
    (
        "hest: a position is NaN",
        hest(table(nan_position)),
        ValueError,
        r"TENX1.h5ad: obsm\['spatial'\] are NaN or infinite for 1 of 48 spots, the first of them '000x008'",
    ),
    (
        "hest: positions of one column",
        hest(table(one_column)),
        ValueError,
        r"obsm\['spatial'\] is float64 of shape \(48, 1\)",
    ),
    (
        "hest: spots outside",
        hest(table(far_away)),
        ValueError,
        r"TENX1.h5ad: \d+% of the spots \(obsm\['spatial'\]\) lie outside of .*TENX1.tif, which has 470 x 300 px",
    ),
    ("hest: image cut", hest(cut(TIFF, 0.4)), ValueError, "TENX1.tif is (truncated|no TIFF file)"),
    (
        "hest: image of 16 bits",
        hest(lambda root: tifffile.imwrite(root / TIFF, np.zeros((300, 470, 3), np.uint16), photometric="rgb")),
        ValueError,
        "TENX1.tif.* is no H&E: it has 3 channels of uint16",
    ),
    (
        "hest: nuclei are no geometries",
        hest(lambda root: pd.DataFrame({"geometry": [1.0]}).to_parquet(root / "cellvit_seg/TENX1_cellvit_seg.parquet")),
        ValueError,
        "TENX1_cellvit_seg.parquet has no column 'geometry' that geopandas can read",
    ),
    (
        "hest: nuclei cut",
        hest(cut("cellvit_seg/TENX1_cellvit_seg.parquet")),
        ValueError,
        "TENX1_cellvit_seg.parquet cannot be read",
    ),
    (
        "hest: a zip without nuclei",
        hest(
            remove("cellvit_seg/TENX1_cellvit_seg.parquet"),
            lambda root: research.zipped_geojson(root / "cellvit_seg/TENX1_cellvit_seg.geojson.zip", []),
        ),
        ValueError,
        "TENX1_cellvit_seg.geojson.zip has no polygons: 'features' is empty",
    ),
    (
        "hest: tissue cut",
        hest(cut("tissue_seg/TENX1_contours.geojson")),
        ValueError,
        "TENX1_contours.geojson cannot be read: .*truncated",
    ),
    (
        "hest: tissue is no GeoJSON",
        hest(write("tissue_seg/TENX1_contours.geojson", '{"a": 1}')),
        ValueError,
        "TENX1_contours.geojson holds no GeoJSON: .* 'features'",
    ),
    (
        "hest: tissue without geometry",
        hest(write("tissue_seg/TENX1_contours.geojson", '[{"type": "Feature"}]')),
        KeyError,
        "TENX1_contours.geojson: feature 0 has no 'geometry'",
    ),
    (
        "hest: tissue of points",
        hest(
            write(
                "tissue_seg/TENX1_contours.geojson",
                '[{"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}}]',
            )
        ),
        ValueError,
        "TENX1_contours.geojson has no polygons in its 1 features",
    ),
    (
        "hest: transcripts without he_x",
        hest(transcripts(he_x=None)),
        KeyError,
        "TENX1_transcripts.parquet has no column 'he_x'",
    ),
    (
        "hest: transcripts in text",
        hest(transcripts(he_y=["a", "b", "c", "d"])),
        ValueError,
        "TENX1_transcripts.parquet: column 'he_y' holds string; it should hold numbers",
    ),
    (
        "hest: a transcript nowhere",
        hest(transcripts(he_x=[1.0, np.nan, 2.0, 3.0])),
        ValueError,
        "TENX1_transcripts.parquet: column 'he_x' should hold numbers, but row 1 has None",
    ),
    (
        "hest_table: no table",
        lambda path: lambda: sthist.io.hest_table(path),
        FileNotFoundError,
        "has neither a table of metadata such as HEST_v1_1_0.csv nor files metadata/<id>.json",
    ),
    (
        "hest_table: no id",
        lambda path: (path / "HEST_v1_1_0.csv").write_text("organ\nLung\n") and (lambda: sthist.io.hest_table(path)),
        KeyError,
        "HEST_v1_1_0.csv has no column 'id'",
    ),
    (
        "hest_table: a sample twice",
        lambda path: (path / "HEST_v1_1_0.csv").write_text("id\nA\nA\n") and (lambda: sthist.io.hest_table(path)),
        ValueError,
        "HEST_v1_1_0.csv: column 'id' has 'A' more than once",
    ),
    (
        "hest_table: mpp is text",
        lambda path: (
            (path / "HEST_v1_1_0.csv").write_text("id,pixel_size_um_estimated\nA,40x\n")
            and (lambda: sthist.io.hest_table(path))
        ),
        ValueError,
        "HEST_v1_1_0.csv: column 'pixel_size_um_estimated' should hold numbers.*'40x'",
    ),
    (
        "hest_table: mpp of a sample's own file is text",
        lambda path: (
            research.hest_metadata(path / JSON, "TENX1", "Visium", 1.0, pixel_size_um_estimated="40x")
            or (lambda: sthist.io.hest_table(path))
        ),
        ValueError,
        "metadata: column 'pixel_size_um_estimated' should hold numbers.* in row TENX1: '40x'",
    ),
]

STIMAGE: list[Case] = [
    (
        "stimage: no slides",
        lambda path: lambda: sthist.io.stimage(path),
        FileNotFoundError,
        "none of ST/coord, .*_coord.csv",
    ),
    (
        "stimage: no such slide",
        lambda path: (lambda _: lambda: sthist.io.stimage(path, "Human"))(research.stimage_copy(path)),
        FileNotFoundError,
        r"no sample 'Human' \(<technology>/coord/Human_coord.csv\)",
    ),
    ("stimage: no counts", stimage(remove(COUNT)), FileNotFoundError, f"There is no file .*{SLIDE}_count.csv"),
    ("stimage: no image", stimage(remove(f"ST/image/{SLIDE}.png")), FileNotFoundError, f"{SLIDE}.png. .* image=False"),
    (
        "stimage: no column",
        stimage(csv(COORD, lambda frame: frame.drop(columns="r"))),
        KeyError,
        f"{SLIDE}_coord.csv has no column 'r'",
    ),
    ("stimage: no rows", stimage(csv(COORD, lambda frame: frame[:0])), ValueError, f"{SLIDE}_coord.csv has no rows"),
    (
        "stimage: a position is text",
        stimage(csv(COORD, cell(2, "xaxis", "left"))),
        ValueError,
        f"{SLIDE}_coord.csv: column 'xaxis' should hold numbers.*'left'",
    ),
    (
        "stimage: no radius",
        stimage(csv(COORD, cell(2, "r", "0"))),
        ValueError,
        f"{SLIDE}_coord.csv: column 'r' should hold the radius .* has 0",
    ),
    (
        "stimage: spot twice",
        stimage(csv(COORD, twice)),
        ValueError,
        f"_coord.csv has spot '{SLIDE}_7x10' more than once",
    ),
    ("stimage: counts twice", stimage(csv(COUNT, twice)), ValueError, f"_count.csv has spot '{SLIDE}_10x12' more than"),
    (
        "stimage: no common spots",
        stimage(csv(COUNT, renamed)),
        ValueError,
        f"_count.csv and .*_coord.csv have no spot in common: .* 'Other_0' and '{SLIDE}_7x10'",
    ),
    (
        "stimage: counts are logarithms",
        stimage(csv(COUNT, cell(0, "EPCAM", "0.5"))),
        ValueError,
        "_count.csv: the table should hold raw counts.* has 0.5 of 'EPCAM'",
    ),
    (
        "stimage: a count is text",
        stimage(csv(COUNT, cell(1, "EPCAM", "many"))),
        ValueError,
        "_count.csv: column 'EPCAM' should hold numbers.*'many'",
    ),
    ("stimage: counts empty", stimage(write(COUNT, "")), ValueError, f"{SLIDE}_count.csv has no lines"),
    (
        "stimage: counts a header alone",
        stimage(write(COUNT, ",COL1A1\n")),
        ValueError,
        f"{SLIDE}_count.csv has no rows",
    ),
    (
        "stimage: counts without genes",
        stimage(write(COUNT, "spot\nA\n")),
        ValueError,
        f"{SLIDE}_count.csv has no columns beside the names of its rows",
    ),
    (
        "stimage: another image",
        stimage(small_picture(f"ST/image/{SLIDE}.png")),
        ValueError,
        rf"_coord.csv: \d+% of the spots \(xaxis, yaxis\) lie outside of .*{SLIDE}.png, which has 90 x 90 px",
    ),
    ("stimage: image cut", stimage(cut(f"ST/image/{SLIDE}.png")), ValueError, f"{SLIDE}.png cannot be read"),
    (
        "stimage: r contradicts the lattice",
        stimage(csv(COORD, lambda frame: frame.assign(r=40))),
        ValueError,
        r"disagree by 60.0%: 1.25 µm/px \(r of .*_coord.csv, 50 µm\) and 2 µm/px \(spots 200 µm apart",
    ),
    (
        "stimage: table of slides without slides",
        stimage(write("meta/meta_all_gene.csv", "name,species\nA,human\n")),
        KeyError,
        "meta_all_gene.csv has no column 'slide'",
    ),
]

LEGACY: list[Case] = [
    ("legacy: no counts", legacy(remove("A1.tsv.gz")), FileNotFoundError, "counts=: there is no file .*A1.tsv.gz"),
    (
        "legacy: no spots",
        legacy(remove("A1_selection.tsv")),
        FileNotFoundError,
        "spots=: there is no file .*A1_selection",
    ),
    ("legacy: no image", legacy(remove("A1_HE.jpg")), FileNotFoundError, "image=: there is no file .*A1_HE.jpg"),
    ("legacy: counts cut", legacy(cut_gzip("A1.tsv.gz")), ValueError, "A1.tsv.gz cannot be read: .*truncated"),
    ("legacy: counts are no gzip", legacy(write("A1.tsv.gz", "x\ty\n")), ValueError, "A1.tsv.gz cannot be read"),
    (
        "legacy: a row cut",
        legacy(lambda root: (root / "A1.tsv").write_text("\tA\tB\n7x12\t1\t2\n8x12\t1\n"), change=None),
        ValueError,
        "A1.tsv: column 'B' should hold numbers, but 1 of 2 are none, the first in row 8x12",
    ),
    (
        "legacy: spots without pixels",
        legacy(spots_of(x=[1, 2, 3], y=[1, 2, 4])),
        KeyError,
        "A1_selection.tsv has no column 'pixel_x', 'pixel_y'",
    ),
    (
        "legacy: none selected",
        legacy(csv("A1_selection.tsv", lambda frame: frame.assign(selected=0), "\t")),
        ValueError,
        r"A1_selection.tsv has no selected spots \(column 'selected'\)",
    ),
    (
        "legacy: spot twice",
        legacy(csv("A1_selection.tsv", twice, "\t")),
        ValueError,
        "_selection.tsv has spot '7x12' more",
    ),
    (
        "legacy: a pixel is text",
        legacy(csv("A1_selection.tsv", cell(3, "pixel_x", "?"), "\t")),
        ValueError,
        "A1_selection.tsv: column 'pixel_x' should hold numbers",
    ),
    (
        "legacy: counts of another section",
        legacy(csv("A1.tsv.gz", renamed, "\t")),
        ValueError,
        r"A1.tsv.gz and .*A1_selection.tsv have no spot in common: .*'Other_0' \(rows\)",
    ),
    (
        "legacy: counts twice",
        legacy(csv("A1.tsv.gz", twice, "\t")),
        ValueError,
        "A1.tsv.gz has spot '7x12' more than once",
    ),
    (
        "legacy: counts are logarithms",
        legacy(csv("A1.tsv.gz", cell(0, "EPCAM", "1.6"), "\t")),
        ValueError,
        "A1.tsv.gz: the table should hold raw counts.*spot '7x12' has 1.6 of 'EPCAM'",
    ),
    (
        "legacy: mpp contradicts the array",
        legacy(change={"mpp": 3.0}),
        ValueError,
        r"A1_selection.tsv disagree by .*\(spots 200 µm apart, pitch_um=\) and 3 µm/px",
    ),
    (
        "legacy: spots on one line",
        legacy(on_one_line),
        ValueError,
        "A1_selection.tsv: the scale needs at least 3 spots that are not on one line of the array.* mpp=",
    ),
    (
        "legacy: pixels of other spots",
        legacy(exchanged_rows),
        ValueError,
        r"A1_selection.tsv: the spots lie \d+ px \(median\) from where x and y .*columns pixel_x, pixel_y",
    ),
    (
        "legacy: pitch of nothing",
        legacy(change={"pitch_um": 0.0}),
        ValueError,
        "pitch_um is 0.0; the distance between spots",
    ),
    (
        "legacy: a smaller copy of the image",
        legacy(small_picture("A1_HE.jpg")),
        ValueError,
        r"A1_selection.tsv: \d+% of the spots \(pixel_x, pixel_y\) lie outside of .*A1_HE.jpg, which has 90 x 90 px",
    ),
    ("legacy: a grey image", legacy(grey_picture("A1_HE.jpg")), ValueError, "A1_HE.jpg.* is no H&E: it has 1 channels"),
    (
        "legacy: labels without labels",
        legacy(write("A1_labeled_coordinates.tsv", "x\ty\n1\t2\n")),
        KeyError,
        "A1_labeled_coordinates.tsv has no column 'label' beside 'x' and 'y'",
    ),
    (
        "legacy: labels cut",
        legacy(cut("A1_labeled_coordinates.tsv", 0.52)),
        ValueError,
        "A1_labeled_coordinates.tsv: line .* has no place and label.*truncated",
    ),
    (
        "legacy: ST-Net's spots without a place",
        legacy(
            lambda root: pd.DataFrame({"X": [1.0], "Y": [2.0]}, index=["ACGT-1"]).to_csv(root / "spots_BC1_C1.csv.gz"),
            dialect="stnet",
        ),
        ValueError,
        "spots_BC1_C1.csv.gz: the first column should name spots by their place, like 10x13, but has 'ACGT-1'",
    ),
    (
        "legacy: ST-Net's spots cut",
        legacy(cut_gzip("spots_BC1_C1.csv.gz"), dialect="stnet"),
        ValueError,
        "spots_BC1_C1.csv.gz cannot be read: .*truncated",
    ),
]


def _with_counts(case: Case, name: str) -> Case:
    """The same case, reading counts of this name."""
    title, make, error, match = case

    def changed(path: Path) -> Read:
        files, _ = research.her2st_files(path)
        make(path)
        return lambda: sthist.io.legacy_st(**files | {"counts": path / name})

    return title, changed, error, match


CASES: list[Case] = (
    HEST + STIMAGE + [_with_counts(case, "A1.tsv") if case[0] == "legacy: a row cut" else case for case in LEGACY]
)
