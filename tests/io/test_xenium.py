"""The vendor's folder, real and damaged."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from realdata import folder

import sthist
from sthist import scale


def test_real_folder():
    """Everything in um; molecules lie on the nuclei."""
    sdata = sthist.io.xenium(folder("xenium_ileum_tiny") / "outs")
    for _, name, element in sdata.gen_spatial_elements():
        assert scale.matrix_to(element).shape == (3, 3), name
    assert scale.resolve_mpp(sdata, "morphology_focus") == pytest.approx((0.2125, 0.2125))
    np.testing.assert_allclose(scale.matrix_to(sdata["transcripts"]), np.eye(3), atol=1e-9)
    roles = sdata.attrs["sthist"]["roles"]
    assert roles["nuclear"] == {"images": ["morphology_focus"], "channel": "DAPI", "cytoplasm": []}
    assert roles["transcripts"] == {"points": "transcripts", "gene": "feature_name"}
    frame = sdata["transcripts"].compute()
    frame = frame[(frame.qv >= 20) & (frame.overlaps_nucleus == 1)]
    rows, columns = (frame[axis].to_numpy() / 0.2125 for axis in ("y", "x"))
    stain = sdata["morphology_focus"]["scale0"].image.to_numpy()[0]
    on_nuclei = stain[rows.astype(int), columns.astype(int)]
    assert (on_nuclei > 0).mean() > 0.9


def test_cells_of_a_table_linked_to_labels():
    """The vendor's table goes with the label image; its cells are found among the outlines by their names."""
    sdata = sthist.io.xenium(folder("xenium_ileum_tiny") / "outs", transcripts=False)
    sthist.tl.virtual_he(sdata)
    made = sdata.attrs["sthist"]["results"]["virtual_he"]["section"]["eosin_from"]
    assert made[0].startswith("counts of cells")


def test_contradicting_metadata(tmp_path):
    """Another µm/px in the image than in experiment.xenium."""
    import shutil

    shutil.copytree(folder("xenium_ileum_tiny") / "outs", tmp_path / "outs", copy_function=os.symlink)
    content = json.loads((tmp_path / "outs" / "experiment.xenium").read_text())
    (tmp_path / "outs" / "experiment.xenium").unlink()
    (tmp_path / "outs" / "experiment.xenium").write_text(json.dumps(content | {"pixel_size": 0.5}))
    with pytest.raises(ValueError, match=r"disagree by 135.3%: 0.2125 µm/px \(OME PhysicalSizeX\) and 0.5"):
        sthist.io.xenium(tmp_path / "outs")


def test_no_xenium_folder(tmp_path):
    """A missing folder, and one without its manifest."""
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match="is no Xenium folder: it has no experiment.xenium"):
            sthist.io.xenium(path)


@pytest.mark.parametrize("pixel_size", [None, "0.2", 0])
def test_no_pixel_size(tmp_path, pixel_size):
    """The scale is not guessed."""
    (tmp_path / "experiment.xenium").write_text(json.dumps({"pixel_size": pixel_size}))
    with pytest.raises(ValueError, match="states no pixel size in µm"):
        sthist.io.xenium(tmp_path)
