"""The user's store: one writer, one rename, repair."""

from __future__ import annotations

import os
import subprocess
import sys

import geopandas as gpd
import numpy as np
import pytest
import shapely
import spatialdata as sd
from spatialdata.models import ShapesModel
from spatialdata.transformations import Identity
from writing import files_under

import sthist
from sthist import _store


def square(side=10.0):
    return ShapesModel.parse(
        gpd.GeoDataFrame(geometry=[shapely.box(0, 0, side, side)]), transformations={"um": Identity()}
    )


def test_add_and_read_back(backed):
    """A small element is in the object and in the store, with what made it; the name is then taken."""
    made = _store.provenance("test", number=1)
    _store.add(backed, "shapes", "square", square(), made)
    again = sd.read_zarr(backed.path)
    assert again["square"].geometry.area.tolist() == [100.0]
    assert again.attrs["sthist"]["results"]["square"] == made
    with pytest.raises(ValueError, match="exists. Pass overwrite=True"):
        _store.add(again, "shapes", "square", square(), made)
    _store.add(again, "shapes", "square", square(20.0), made, overwrite=True)
    assert sd.read_zarr(backed.path)["square"].geometry.area.tolist() == [400.0]
    assert sorted(path.name for path in (backed.path / ".sthist").iterdir()) == [".lock"]


@pytest.mark.parametrize("exchange", [True, False])
def test_replacing_with_and_without_the_kernels_help(backed, monkeypatch, exchange):
    """Where folders cannot be exchanged, the old one is put aside first."""
    if not exchange:
        monkeypatch.setattr("sthist._store.commit.exchange", lambda *_: False)
    for side in (10.0, 30.0):
        _store.add(backed, "shapes", "square", square(side), _store.provenance("test"), overwrite=True)
    assert sd.read_zarr(backed.path)["square"].geometry.area.tolist() == [900.0]
    assert [path.name for path in (backed.path / "shapes").iterdir() if "square" in path.name] == ["square"]


def test_a_second_writer_is_refused(backed):
    """While another process holds the lock, and not after it has gone, however it went."""
    code = (
        "import sys, time, spatialdata as sd; from sthist import _store\n"
        "with _store.writing(sd.read_zarr(sys.argv[1])):\n"
        "    print('holding', flush=True); time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, backed.path], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline().strip() == "holding"
    with pytest.raises(RuntimeError, match="Another process is writing to"):
        sthist.tl.virtual_he(backed)
    holder.kill()
    holder.wait()
    holder.stdout.close()
    sthist.tl.virtual_he(backed)
    assert "virtual_he" in sd.read_zarr(backed.path).images


def test_read_only_store(backed, monkeypatch):
    """Refused before anything is computed."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="is read-only: nothing was written"):
        sthist.tl.virtual_he(backed)


def test_remote_stores_are_refused(toy):
    """With the way out."""

    class Remote:
        path = "s3://bucket/sample.zarr"

    with pytest.raises(ValueError, match="is remote; sthist writes to local stores only"):
        _store.store_path(Remote())


def test_an_element_that_does_not_read_is_not_published(backed, tmp_path):
    """A broken build changes nothing."""
    sd.SpatialData(shapes={"square": square()}).write(tmp_path / "built.zarr")
    next((tmp_path / "built.zarr" / "shapes" / "square").rglob("*.parquet")).write_bytes(b"PAR1 no more")
    before = (backed.path / "zarr.json").read_text()
    with pytest.raises(Exception, match="(?i)parquet"):
        _store.publish(backed, "shapes", "square", tmp_path / "built.zarr", {})
    assert (backed.path / "zarr.json").read_text() == before
    assert "square" not in backed.shapes


def test_transformations_are_persisted(backed):
    """set_scale on a backed object is there after reading again."""
    from spatialdata.transformations import remove_transformation

    for _, _, element in backed.gen_spatial_elements():
        remove_transformation(element, "um")
    for _, name, _ in backed.gen_spatial_elements():
        backed.write_transformations(name)
    assert sd.read_zarr(backed.path).coordinate_systems == ["global"]
    again = sd.read_zarr(backed.path)
    sthist.pp.set_scale(again, "morphology_focus", mpp=0.5)
    last = sd.read_zarr(backed.path)
    assert sorted(last.coordinate_systems) == ["global", "um"]
    assert sthist.scale.resolve_mpp(last, "he") == pytest.approx((0.5, 0.5))


class TestLostUpdate:
    """Two objects of one store: what one of them has written is not undone by the other, which has read it before."""

    @pytest.fixture
    def two(self, toy, tmp_path):
        sthist.pp.tissue(toy)
        sthist.pp.tiles(toy, size_um=64, px=32)
        toy.write(tmp_path / "s.zarr")
        return sd.read_zarr(tmp_path / "s.zarr"), sd.read_zarr(tmp_path / "s.zarr")

    def test_results_of_both_are_kept(self, two):
        """In the store, and in the object that has written last; also what it holds that nobody has saved."""
        first, second = two
        sthist.pp.embed(first, "morphology", image="he", outside="nan", progress=False)
        second["tiles_table"].obs["my_own"] = 1.5
        sthist.pp.label_regions(second, "tiles", "regions", key_added="part")
        for sdata in (second, sd.read_zarr(second.path)):
            table = sdata["tiles_table"]
            assert {"part", "my_own"} <= set(table.obs)
            np.testing.assert_array_equal(table.obsm["X_morphology"], first["tiles_table"].obsm["X_morphology"])
            assert {"X_morphology", "part"} <= set(table.uns["sthist"])

    def test_the_same_result_of_both_is_refused(self, two):
        first, second = two
        sthist.pp.label_regions(first, "tiles", "regions", key_added="part")
        first["tiles_table"].obs["part"] = "by hand"
        sthist.pp.label_regions(first, "tiles", "regions", key_added="other")
        before = files_under(first.path)
        with pytest.raises(ValueError, match=r"Another process has changed the table 'tiles_table'.*obs\['part'\]"):
            sthist.pp.label_regions(second, "tiles", "regions", key_added="part", min_fraction=0.1)
        assert files_under(first.path) == before
        assert "part" not in second["tiles_table"].obs

    def test_an_element_of_the_same_name_is_refused(self, two):
        first, second = two
        sthist.pp.aggregate(first, bin_um=50, key_added="grid")
        with pytest.raises(ValueError, match="exists in the store"):
            sthist.pp.aggregate(second, bin_um=20, key_added="grid")
        sthist.pp.aggregate(second, bin_um=20, key_added="grid", overwrite=True)
        assert sd.read_zarr(first.path)["grid"].n_obs > first["grid"].n_obs

    def test_an_image_of_a_name_that_another_has_taken_is_refused(self, two):
        """Before it is computed: it would stand beside the other, or in its place."""
        first, second = two
        sthist.pp.tissue(first, key_added="section")
        for overwrite in (False, True):
            with pytest.raises(ValueError, match=r"taken by shapes\['section'\] in the store"):
                sthist.tl.virtual_he(second, key_added="section", overwrite=overwrite, progress=False)
        assert set(sd.read_zarr(first.path).images) == set(first.images)

    def test_without_another_writer_all_changes_are_saved(self, two):
        _, alone = two
        alone["tiles_table"].obs["tissue_fraction"] = 0.25
        sthist.pp.label_regions(alone, "tiles", "regions", key_added="part")
        assert (sd.read_zarr(alone.path)["tiles_table"].obs["tissue_fraction"] == 0.25).all()
