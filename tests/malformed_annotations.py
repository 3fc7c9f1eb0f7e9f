"""Damaged annotations, folders of tiles and stores of other packages, and what is said of each.

``CASES`` holds a name, what makes the damaged input and gives the call that fails, the error, and a pattern of its
message.
"""

from __future__ import annotations

import gzip
import json
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import spatialdata as sd
import tifffile
from PIL import Image
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity, Scale

import sthist

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Read = Callable[[], Any]
    Case = tuple[str, Callable[[Path], Read], type[Exception], str]

RING = [[10, 10], [20, 10], [20, 20], [10, 20], [10, 10]]


def sample() -> sd.SpatialData:
    """One image of 200 x 100 px, of 0.5 µm each."""
    systems = {"global": Identity(), "um": Scale([0.5, 0.5], ("x", "y"))}
    image = Image2DModel.parse(np.full((3, 100, 200), 200, np.uint8), transformations=systems)
    return sd.SpatialData(images={"he": image})


def drawn(content: Any, name: str = "x.geojson", **options: Any) -> Callable[[Path], Read]:
    """Read a file of this content: text, bytes, or what becomes JSON."""

    def make(path: Path) -> Read:
        if isinstance(content, bytes):
            (path / name).write_bytes(content)
        else:
            (path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return lambda: sthist.io.read_annotations(sample(), path / name, **options)

    return make


def feature(*, coordinates: Any = (RING,), kind: str = "Polygon", **properties: Any) -> dict[str, Any]:
    return {
        "type": "Feature",
        "geometry": {"type": kind, "coordinates": coordinates},
        "properties": {"objectType": "annotation"} | properties,
    }


def second(each: dict[str, Any], **options: Any) -> Callable[[Path], Read]:
    """Read a file whose second feature is this one."""
    return drawn({"type": "FeatureCollection", "features": [feature(), each]}, **options)


def zipped(*names: str) -> Callable[[Path], Read]:
    def make(path: Path) -> Read:
        with zipfile.ZipFile(path / "x.zip", "w") as archive:
            for name in names:
                archive.writestr(name, "[]")
        return lambda: sthist.io.read_annotations(sample(), path / "x.zip")

    return make


def unnamed(path: Path) -> Read:
    """Two images, and nobody says on which one it was drawn."""
    drawn([feature()])(path)
    both = sample()
    both.images["dapi"] = Image2DModel.parse(np.zeros((1, 50, 50), np.uint8))
    return lambda: sthist.io.read_annotations(both, path / "x.geojson")


TEXT = json.dumps({"type": "FeatureCollection", "features": [feature(), feature()]})
LINE = {"type": "Feature", "geometry": {"type": "LineString", "coordinates": [[0, 0], [9, 9]]}, "properties": {}}
POINT = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [5, 5]}, "properties": {}}

GEOJSON: list[Case] = [
    (
        "geojson: no such file",
        lambda path: lambda: sthist.io.read_annotations(sample(), path / "no.geojson"),
        FileNotFoundError,
        "There is no file .*no.geojson",
    ),
    (
        "geojson: another kind of file",
        drawn("<xml/>", "x.xml"),
        ValueError,
        r"x.xml is neither GeoJSON \(.geojson, .json, .* nor a csv file of selections",
    ),
    ("geojson: cut", drawn(TEXT[: len(TEXT) // 2]), ValueError, "x.geojson cannot be read: .*truncated"),
    ("geojson: empty", drawn(""), ValueError, "x.geojson cannot be read: .*truncated"),
    ("geojson: no text", drawn(b"\xff\xfe\x00\x01"), ValueError, "x.geojson cannot be read: .*utf-8"),
    (
        "geojson: gzip cut",
        drawn(gzip.compress(TEXT.encode())[:40], "x.geojson.gz"),
        ValueError,
        "x.geojson.gz cannot be read: .*truncated",
    ),
    ("geojson: zip cut", drawn(b"PK\x03\x04 and no more", "x.zip"), ValueError, "x.zip cannot be read"),
    (
        "geojson: zip of two",
        zipped("a.geojson", "b.geojson"),
        ValueError,
        "x.zip holds 2 GeoJSON files, such as .*'a.geojson'",
    ),
    ("geojson: zip of none", zipped("a.qpdata"), ValueError, "x.zip holds no file that ends in .geojson or .json"),
    ("geojson: a number", drawn(3), ValueError, "x.geojson holds no GeoJSON: it has int where a 'Feature'"),
    (
        "geojson: other JSON",
        drawn({"type": "Topology"}),
        ValueError,
        "x.geojson holds no GeoJSON: it has 'type' 'Topology'",
    ),
    (
        "geojson: no features",
        drawn({"type": "FeatureCollection", "features": []}),
        ValueError,
        "x.geojson holds no objects: 'features'",
    ),
    (
        "geojson: no geometry",
        second({"type": "Feature", "properties": {}}),
        KeyError,
        "x.geojson: feature 1 has no 'geometry'",
    ),
    (
        "geojson: two corners",
        second(feature(coordinates=[RING[:2]])),
        ValueError,
        r"x.geojson: 'geometry' of feature 1 \(Polygon\) cannot be read: .*'coordinates' complete",
    ),
    (
        "geojson: text for a number",
        second(feature(coordinates=[[*RING[:3], ["x", 0], RING[0]]])),
        ValueError,
        r"x.geojson: 'geometry' of feature 1 \(Polygon\) cannot be read: .*could not convert",
    ),
    (
        "geojson: NaN for a number",
        second(feature(coordinates=[[*RING[:3], [float("nan"), 0], RING[0]]])),
        ValueError,
        "x.geojson: 'geometry' of feature 1 has 'coordinates' that are NaN or infinite",
    ),
    (
        "geojson: an unknown geometry",
        second(feature(kind="Ellipse")),
        ValueError,
        r"x.geojson: 'geometry' of feature 1 \(Ellipse\) cannot be read",
    ),
    (
        "geojson: a broken nucleus",
        second(feature(objectType="cell") | {"nucleusGeometry": {"type": "Polygon"}}),
        ValueError,
        r"x.geojson: 'nucleusGeometry' of feature 1 \(Polygon\) cannot be read: 'coordinates'",
    ),
    (
        "geojson: properties are a list",
        second(feature() | {"properties": [1]}),
        ValueError,
        "x.geojson: 'properties' of feature 1 is list; it should be an object",
    ),
    (
        "geojson: classification is a list",
        second(feature(classification=["Tumor"])),
        ValueError,
        r"x.geojson: 'classification' of feature 1 is \['Tumor'\]; it should be a text, or an object with 'name'",
    ),
    (
        "geojson: measurements are a number",
        second(feature(measurements=3)),
        ValueError,
        "x.geojson: 'measurements' of feature 1 is int",
    ),
    (
        "geojson: measurements without a value",
        second(feature(measurements=[{"name": "Area"}])),
        ValueError,
        "x.geojson: 'measurements' of feature 1 is a list whose items have not all a 'name' and a 'value'",
    ),
    (
        "geojson: a measurement is text",
        second(feature(measurements={"Area": "large"})),
        ValueError,
        "x.geojson: the measurement 'Area' of feature 1 is 'large'; it should be a number",
    ),
    (
        "geojson: no such objects",
        drawn([feature()], kind="cell"),
        ValueError,
        "x.geojson holds no objects whose 'objectType' is 'cell'; it has annotation",
    ),
    (
        "geojson: nothing with an area",
        drawn([LINE, POINT]),
        ValueError,
        "x.geojson holds no outline that has an area: of its 2 objects, 1 are points, 1 lines, .*point_diameter_um=",
    ),
    (
        "geojson: outside",
        drawn([feature(coordinates=[[[x + 900, y] for x, y in RING]])]),
        ValueError,
        "x.geojson: all 1 outlines lie outside of image 'he': .* x 910 to 920, .* x 0 to 200, .*copy of another size",
    ),
    (
        "geojson: of which image",
        unnamed,
        ValueError,
        "x.geojson is in pixels, but of which image.* 'dapi', 'he'.*image=",
    ),
]

HEAD = "#Selection name: a\n#Area (µm^2): 100\n"

SELECTIONS: list[Case] = [
    ("selection: empty", drawn("", "x.csv"), ValueError, "x.csv has no rows with X and Y"),
    ("selection: a header alone", drawn(HEAD, "x.csv"), ValueError, "x.csv has no rows with X and Y"),
    ("selection: no rows", drawn(HEAD + "X,Y\n", "x.csv"), ValueError, "x.csv has no rows with X and Y"),
    (
        "selection: no column Y",
        drawn(HEAD + "X,Z\n1,2\n", "x.csv"),
        KeyError,
        "x.csv has no column 'Y'; its columns are .*'X', 'Z'",
    ),
    (
        "selection: text for a number",
        drawn(HEAD + "X,Y\n1,2\n3,four\n5,6\n", "x.csv"),
        ValueError,
        "x.csv: column 'Y' should hold numbers, but 1 of 3 are none, the first in row 1: 'four'",
    ),
    (
        "selection: a row cut",
        drawn(HEAD + "X,Y\n1,2\n3\n5,6\n", "x.csv"),
        ValueError,
        "x.csv: column 'Y' should hold numbers.* row 1",
    ),
    (
        "selection: two vertices",
        drawn(HEAD + "X,Y\n1,2\n3,4\n1,2\n", "x.csv"),
        ValueError,
        "x.csv holds no outline that has an area: of its 1 objects",
    ),
    (
        "selection: pixels",
        drawn(HEAD + "X,Y\n150,60\n190,60\n190,90\n", "x.csv"),
        ValueError,
        "x.csv: all 1 outlines lie outside .* µm.*look like pixels taken for micrometres",
    ),
    (
        "selection: no gzip",
        drawn(b"\x1f\x8b no more", "x.csv.gz"),
        ValueError,
        "x.csv.gz cannot be read",
    ),
]


def picture(path: Path, pixels: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 20, 3), 200, np.uint8) if pixels is None else pixels).save(path)
    return path


def tiles(*files: str, damage: Callable[[Path], Any] | None = None, **options: Any) -> Callable[[Path], Read]:
    """List a folder of whole pictures, of which one was damaged."""

    def make(path: Path) -> Read:
        for name in files or ("x/a.png", "y/b.png"):
            picture(path / name)
        if damage is not None:
            damage(path)
        given = {"mpp": 0.5} | {
            key: path / value if key == "labels" and value else value for key, value in options.items()
        }
        return lambda: sthist.io.tile_folder(path, **given)

    return make


def listed(text: str, name: str = "labels.csv", **options: Any) -> Callable[[Path], Read]:
    """List a folder whose labels are in this table."""
    return tiles(damage=lambda path: (path / name).write_text(text), labels=name, **options)


def halve(path: Path) -> None:
    content = (path / "x/a.png").read_bytes()
    (path / "x/a.png").write_bytes(content[: len(content) // 2])


TILES: list[Case] = [
    (
        "tiles: no folder",
        lambda path: lambda: sthist.io.tile_folder(path / "no", mpp=1),
        FileNotFoundError,
        "There is no folder .*no",
    ),
    (
        "tiles: no images",
        lambda path: (path / "a.txt").write_text("") or (lambda: sthist.io.tile_folder(path, mpp=1)),
        FileNotFoundError,
        r"has no images \(.bmp, .jpeg, .*, but 1 other files",
    ),
    (
        "tiles: no mpp",
        tiles(mpp=None),
        ValueError,
        "µm per pixel of 'x/a.png' is not known: .*mpp=, or in a column 'mpp'",
    ),
    ("tiles: mpp of nothing", tiles(mpp=0.0), ValueError, "mpp is 0.0; the µm per pixel are a positive number"),
    (
        "tiles: cut",
        tiles(damage=halve),
        ValueError,
        r"1 of 2 images in .* cannot be used: 'x/a.png'. .*a.png cannot be read.*broken='leave out'",
    ),
    (
        "tiles: empty",
        tiles(damage=lambda path: (path / "y/b.png").write_bytes(b"")),
        ValueError,
        "'y/b.png'. The first: .*b.png cannot be read",
    ),
    (
        "tiles: grey",
        tiles(damage=lambda path: picture(path / "x/a.png", np.zeros((9, 9), np.uint8))),
        ValueError,
        "'x/a.png'. The first: .*a.png has 1 channel of uint8; three colours of 8 bits",
    ),
    (
        "tiles: 16 bits",
        tiles(
            damage=lambda path: tifffile.imwrite(path / "x/c.tif", np.zeros((9, 9, 3), np.uint16), photometric="rgb")
        ),
        ValueError,
        "'x/c.tif'. The first: .*c.tif has 3 channels of uint16",
    ),
    (
        "tiles: no folders",
        tiles("a.png"),
        ValueError,
        "the images lie in no folders that could be labels, such as 'a.png'.*labels=",
    ),
    (
        "tiles: several depths",
        tiles("a.png", "x/b.png"),
        ValueError,
        "images lie at several depths, such as 'a.png' and 'x/b.png'",
    ),
    (
        "tiles: levels of another depth",
        tiles(levels=("split", "label")),
        ValueError,
        r"levels is \('split', 'label'\); it names each of the 1 folders in 'x/a.png'",
    ),
    (
        "tiles: a patient in two spellings",
        tiles("P1/a.png", "p-1/b.png", levels=("patient",)),
        ValueError,
        "'P1' and 'p-1' look like one patient",
    ),
    ("tiles: no patient in a name", tiles(patient=r"(\d+)"), ValueError, r"finds no patient in the path 'x/a.png'"),
    ("tiles: patient= without a group", tiles(patient="a"), ValueError, "patient='a' has no group"),
    ("tiles: patient= is no expression", tiles(patient="("), ValueError, r"patient='\(' is no regular expression"),
    ("tiles: no table", tiles(labels="no.csv"), FileNotFoundError, "There is no table of labels .*no.csv"),
    ("tiles: an empty table", listed("file,label\n"), ValueError, "labels.csv has no rows"),
    ("tiles: no column of files", listed("label\nx\n"), KeyError, "labels.csv has no column 'file' .*columns=.*'file'"),
    ("tiles: no column of labels", listed("file\na.png\n"), KeyError, "labels.csv has no column 'label' .*'class'"),
    (
        "tiles: no such column",
        listed("file,label\na,x\n", columns={"patient": "case"}),
        KeyError,
        "labels.csv has no column 'case', which columns= names",
    ),
    (
        "tiles: an image that is not there",
        listed("file,label\na,x\nc,y\n"),
        ValueError,
        r"labels.csv: 1 of 2 images in column 'file' are not in .*, such as 'c'; files there are called like 'x/a.png'",
    ),
    (
        "tiles: a name that two have",
        tiles(
            "x/a.png", "y/a.png", damage=lambda path: (path / "t.csv").write_text("file,label\na,x\n"), labels="t.csv"
        ),
        ValueError,
        "t.csv: 'a' in column 'file', row 0, may be 'x/a.png' or 'y/a.png'",
    ),
    (
        "tiles: an image twice",
        listed("file,label\na,x\nx/a.png,y\n"),
        ValueError,
        r"labels.csv lists the image 'x/a.png' more than once, in rows 0 and 1 \(column 'file'\)",
    ),
    (
        "tiles: mpp is text",
        listed("file,label,mpp\na,x,40x\n", mpp=None),
        ValueError,
        "labels.csv: column 'mpp' should hold positive numbers, but has '40x' in row 0",
    ),
    (
        "tiles: mpp contradicts the table",
        listed("file,label,mpp\na,x,0.25\n"),
        ValueError,
        "labels.csv states 0.25 µm/px for 'x/a.png' in its column 'mpp', but mpp=0.5",
    ),
    ("tiles: json cut", listed('[{"file": ', "labels.json"), ValueError, "labels.json cannot be read: .*truncated"),
    ("tiles: json of one object", listed("{}", "labels.json"), ValueError, "labels.json should be a list of objects"),
]


def foreign(image: str = "he", *, scaled: bool = False, **attrs: Any) -> Callable[[Path], Read]:
    """Give a store of LazySlide its micrometres."""

    def make(path: Path) -> Read:
        pixels = Image2DModel.parse(np.full((3, 100, 200), 200, np.uint8))
        sdata = sd.SpatialData(images={"he": pixels})
        sdata.attrs |= attrs
        sdata.write(path / "x.zarr")
        store = sd.read_zarr(path / "x.zarr")
        return lambda: sthist.pp.set_scale(store, image, mpp=0.5 if scaled else None)

    return make


def slide(**properties: Any) -> dict[str, Any]:
    return {"slide_properties": {"shape": [100, 200], "mpp": 0.25} | properties}


FOREIGN: list[Case] = [
    (
        "wsidata: no mpp",
        foreign(**slide(mpp=None)),
        ValueError,
        r"Image 'he' has no scale: give it once with pp.set_scale\(sdata, 'he', mpp=",
    ),
    (
        "wsidata: mpp is text",
        foreign(**slide(mpp="0.25")),
        ValueError,
        r"attrs\['slide_properties'\]\['mpp'\] of the object is '0.25'; it should be a positive number.*overwrite=True",
    ),
    (
        "wsidata: mpp is zero",
        foreign(**slide(mpp=0)),
        ValueError,
        r"attrs\['slide_properties'\]\['mpp'\] of the object is 0",
    ),
    ("wsidata: of another image", foreign(**slide(shape=[100, 999])), ValueError, "Image 'he' has no scale"),
    (
        "wsidata: mpp contradicts",
        foreign(scaled=True, **slide()),
        ValueError,
        r"disagree by 100.0%: 0.25 µm/px \(attrs\['slide_properties'\]\['mpp'\]\) and 0.5 µm/px \(the argument mpp=\)",
    ),
]

CASES: list[Case] = GEOJSON + SELECTIONS + TILES + FOREIGN
