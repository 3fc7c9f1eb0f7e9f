"""Which platform a folder is of."""

from __future__ import annotations

import pytest
import vendor
from realdata import folder

from sthist._sample.platforms import FILES, find_platform

MADE = {
    "cosmx": lambda path: vendor.cosmx_folder(path, **vendor.cosmx_sample(), mpp=0.12),
    "merscope": vendor.merscope_folder,
    "visium": vendor.visium_folder,
    "visium_hd": vendor.visium_hd_folder,
}


@pytest.mark.parametrize("platform", MADE)
def test_folders_as_vendors_write_them(tmp_path, platform):
    MADE[platform](tmp_path / "sample")
    assert find_platform(tmp_path / "sample") == platform


def test_a_folder_of_a_real_run():
    assert find_platform(folder("xenium_ileum_tiny") / "outs") == "xenium"


def test_a_store(backed):
    assert find_platform(backed.path) == "spatialdata"


def test_no_platform(tmp_path):
    """The error names the files that were looked for, and a folder inside that has them."""
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="is of no platform that is known by its files") as error:
        find_platform(tmp_path)
    assert all(pattern in str(error.value) for patterns in FILES.values() for pattern in patterns)
    assert "looks like" not in str(error.value)
    (tmp_path / "outs").mkdir()
    (tmp_path / "outs" / "experiment.xenium").touch()
    with pytest.raises(ValueError, match="Its folder 'outs' looks like one of xenium: give that"):
        find_platform(tmp_path)


def test_several_platforms(tmp_path):
    (tmp_path / "experiment.xenium").touch()
    (tmp_path / "detected_transcripts.csv").touch()
    with pytest.raises(
        ValueError, match="2 platforms: experiment.xenium of xenium, detected_transcripts.csv of merscope. Say which"
    ):
        find_platform(tmp_path)


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no"):
        find_platform(tmp_path / "none")
    (tmp_path / "a.tif").touch()
    with pytest.raises(ValueError, match="is a file; give the folder"):
        find_platform(tmp_path / "a.tif")
