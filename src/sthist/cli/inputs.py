"""A sample's folder, whatever its platform, and the store that is worked on."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from sthist import _store

if TYPE_CHECKING:
    from pathlib import Path

    from spatialdata import SpatialData

PLATFORMS = ("xenium", "cosmx", "merscope", "visium", "visium_hd", "spatialdata")


def open_sample(source: Path, platform: str, store: Path, facts: dict[str, str] | None = None) -> SpatialData:
    """The store of a sample: copied there from its folder, whole or not at all, unless an earlier run has done so."""
    import spatialdata as sd

    if not (platform == "spatialdata" and store.resolve() == source.resolve()):
        if not store.exists():
            sdata = read_input(source, platform)
            sdata.attrs.setdefault("sthist", {})["source"] = str(source.resolve())
            partial = store.with_name(store.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            sdata.write(partial)
            os.rename(partial, store)
        made_from = sd.read_zarr(store).attrs.get("sthist", {}).get("source")
        if made_from != str(source.resolve()):
            raise ValueError(
                f"{store} was not made from {source}, but from {made_from or 'something else'}; name another --out."
            )
    sdata = read_input(store, "spatialdata")
    known = sdata.attrs.setdefault("sthist", {}).setdefault("sample", {})
    if facts and known | facts != known:
        known.update(facts)
        _store.write_attributes(sdata)
    return sdata


def read_input(source: Path, platform: str) -> SpatialData:
    """The object of a folder, in memory as far as its reader puts it there."""
    import spatialdata as sd

    import sthist

    if platform != "spatialdata":
        return getattr(sthist.io, platform)(source)
    if not any((source / name).exists() for name in ("zarr.json", ".zgroup")):
        raise FileNotFoundError(f"{source} is no SpatialData store: it has neither zarr.json nor .zgroup.")
    return sd.read_zarr(source)
