"""Files that macOS leaves beside others on drives that are not its own are no part of a sample."""

from __future__ import annotations

import shutil

import pytest
import research
import vendor
from realdata import folder

import sthist


def make(reader, path):
    """A folder of a reader."""
    if reader == "xenium":
        shutil.copytree(folder("xenium_ileum_tiny") / "outs", path)
    elif reader == "cosmx":
        vendor.cosmx_folder(path, **vendor.cosmx_sample(), mpp=0.12)
    elif reader in {"hest", "stimage"}:
        getattr(research, f"{reader}_copy")(path)
    else:
        getattr(vendor, f"{reader}_folder")(path)


HIDDEN = [
    ("xenium", "morphology_focus/._morphology_focus_0000.ome.tif"),
    ("xenium", "._S_he_image.ome.tif"),
    ("xenium", "._experiment.xenium"),
    ("cosmx", "CellComposite/._CellComposite_F001.png"),
    ("cosmx", "CellLabels/._CellLabels_F001.tif"),
    ("cosmx", "._Mini_exprMat_file.csv"),
    ("cosmx", "._Mini_fov_positions_file.csv"),
    ("merscope", "images/._mosaic_DAPI_z3.tif"),
    ("visium", "._A_filtered_feature_bc_matrix.h5"),
    ("visium", "._filtered_feature_bc_matrix.h5"),
    ("visium", "spatial/._tissue_hires_image.png"),
    ("visium_hd", "microscope_image/._tissue.tif"),
    ("visium_hd", "._A_feature_slice.h5"),
    ("visium_hd", "binned_outputs/square_008um/spatial/._scalefactors_json.json"),
    ("hest", "st/._TENX1.h5ad"),
    ("hest", "metadata/._TENX1.json"),
    ("stimage", "ST/coord/._Human_Breast_ST_A1_coord.csv"),
]


@pytest.mark.parametrize(("reader", "hidden"), HIDDEN)
def test_a_hidden_file_is_passed_over(tmp_path, reader, hidden):
    """The same elements are read, or samples, as without it."""
    path = tmp_path / "outs"
    make(reader, path)
    options = {"xenium": {"transcripts": False}, "hest": {"image": False}, "stimage": {"image": False}}.get(reader, {})
    read = getattr(sthist.io, reader)
    without = read(path, **options)
    (path / hidden).write_bytes(b"\x00\x05\x16\x07" + bytes(100))
    again = read(path, **options)
    if isinstance(without, dict):
        assert list(again) == list(without)
    else:
        assert list(again.elements_paths_in_memory()) == list(without.elements_paths_in_memory())
