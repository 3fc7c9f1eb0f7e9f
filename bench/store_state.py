"""What a store holds, how far a run came in it, and whether that is what it should be."""

from __future__ import annotations

import copy
import hashlib
import json
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import spatialdata as sd
import xarray as xr
from spatialdata.transformations import get_transformation
from victim import KEY

if TYPE_CHECKING:
    from pathlib import Path

WORK = ".sthist"
KINDS = ("images", "labels", "points", "shapes", "tables")


@dataclass(frozen=True)
class Contents:
    """What ``read_zarr`` gives.

    Attributes
    ----------
    elements
        By their place: what they consist of, and their coordinate transformations. The virtual H&E by its pixels on all
        pyramid levels, all others by the bytes of their files.
    attributes
        Of the object, less the date of the virtual H&E.
    warnings
        That came up in reading.
    """

    elements: dict[str, tuple[str, str]]
    attributes: dict[str, Any]
    warnings: frozenset[str]

    def without(self, *names: str) -> Contents:
        """The same without some elements and what the attributes say of them."""
        attributes = copy.deepcopy(self.attributes)
        results = attributes.get("sthist", {}).get("results", {})
        for name in names:
            results.pop(name, None)
        if not results:
            attributes.get("sthist", {}).pop("results", None)
        kept = {place: what for place, what in self.elements.items() if place.split("/")[1] not in names}
        return Contents(kept, attributes, self.warnings)


def contents(store: Path) -> Contents:
    """Read a store as a user does."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sdata = sd.read_zarr(store)
        elements = {}
        for kind in KINDS:
            for name, element in getattr(sdata, kind).items():
                digest = pixels(element) if name == KEY else bytes_under(store / kind / name)
                systems = {} if kind == "tables" else get_transformation(element, get_all=True)
                elements[f"{kind}/{name}"] = (digest, repr(sorted(systems.items())))
    attributes = copy.deepcopy(dict(sdata.attrs))
    attributes.get("sthist", {}).get("results", {}).get(KEY, {}).pop("date", None)
    return Contents(elements, attributes, frozenset(f"{w.category.__name__}: {w.message}" for w in caught))


def pixels(image: Any) -> str:
    """Digest of an image: all levels, channels and sizes."""
    digest = hashlib.blake2b(digest_size=16)
    for level in [image] if isinstance(image, xr.DataArray) else [image[scale].image for scale in image.children]:
        digest.update(f"{level.dims} {level.shape} {level.dtype} {level.coords['c'].to_numpy().tolist()}".encode())
        digest.update(level.to_numpy().tobytes())
    return digest.hexdigest()


def bytes_under(folder: Path) -> str:
    """Digest of all files of a folder, and of their names."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def files(store: Path) -> set[str]:
    """Files of a store; those under ``.sthist/`` aside."""
    places = {path.relative_to(store) for path in store.rglob("*") if not path.is_dir() or path.is_symlink()}
    return {str(place) for place in places if place.parts[0] != WORK}


def verdict(found: Contents, before: Contents, complete: Contents) -> str:
    """Which state it is: "before", "complete", or what else."""
    if not found.warnings <= before.warnings | complete.warnings:
        return f"VIOLATION: read_zarr warns: {sorted(found.warnings - before.warnings)[0][:200]}"
    for name, state in (("before", before), ("complete", complete)):
        if (found.elements, found.attributes) == (state.elements, state.attributes):
            return name
    which = []
    for part in ("elements", "attributes"):
        same = [n for n, s in (("before", before), ("after", complete)) if getattr(found, part) == getattr(s, part)]
        which.append(f"{part} {'of ' + same[0] if same else 'of neither'}")
    return f"VIOLATION: {', '.join(which)}"


def is_consolidated(store: Path) -> bool:
    """Whether a store lists what it holds in one place."""
    return json.loads((store / "zarr.json").read_text()).get("consolidated_metadata") is not None


def unlisted(store: Path) -> set[str]:
    """Where the consolidated metadata and the disk differ; nothing for a store without them."""
    if not is_consolidated(store):
        return set()
    listed = json.loads((store / "zarr.json").read_text())["consolidated_metadata"]
    there = {str(path.parent.relative_to(store)) for path in store.rglob("zarr.json")}
    return {place for place in there if place != "." and not place.startswith(WORK)} ^ set(listed["metadata"])


@dataclass(frozen=True)
class Progress:
    """Tells how far a run came, read off the disk without any library.

    Attributes
    ----------
    n_blocks
        Of the image.
    n_files
        Of the image when it is complete.
    replaced
        Identity of the image that was there before the run, if there was one.
    """

    n_blocks: int
    n_files: int
    replaced: str | None

    def of(self, store: Path) -> str:
        """The phase in which the run in a store was stopped."""
        work, element = store / WORK / KEY, store / "images" / KEY
        if identity(element) not in {None, self.replaced}:
            if not _entered(store):
                return "moved, not entered"
            return "entered, working folder left" if work.exists() else "done"
        if not (work / "manifest.json").exists():
            return "nothing built yet"
        done = len(list((work / "done").iterdir()))
        if done < self.n_blocks:
            return "some blocks" if done else "no block"
        built = work / "built.zarr" / "images" / KEY
        n_built = sum(path.is_file() and path.suffix != ".partial" for path in built.rglob("*"))
        return "pyramid" if n_built < self.n_files else "publishing"


def identity(element: Path) -> str | None:
    """Which run made an image."""
    file = element / "zarr.json"
    return json.loads(file.read_text())["attributes"].get("sthist_canvas") if file.exists() else None


def _entered(store: Path) -> bool:
    results = json.loads((store / "zarr.json").read_text())["attributes"].get("sthist", {}).get("results", {})
    made = json.loads((store / "images" / KEY / "zarr.json").read_text())["attributes"]["sthist_provenance"]
    return results.get(KEY) == made
