"""What virtual_he writes opens in other people's viewers as it is."""

from __future__ import annotations

import numpy as np
import pytest
import spatialdata as sd
from skimage.transform import resize

import sthist


# Of matplotlib, as spatialdata-plot uses it.
@pytest.mark.filterwarnings("ignore:The set_bad function will be deprecated:PendingDeprecationWarning")
@pytest.mark.parametrize("size_um", [pytest.param(200, marks=pytest.mark.slow), 540])  # without and with a pyramid
def test_spatialdata_plot(tmp_path, size_um):
    """The figure shows the pixels of the image, where they are, in micrometres."""
    pytest.importorskip("spatialdata_plot", reason="spatialdata-plot is not installed")
    import matplotlib.pyplot as plt

    sthist.datasets.toy(size_um=size_um).write(tmp_path / "toy.zarr")
    sthist.tl.virtual_he(sd.read_zarr(tmp_path / "toy.zarr"))
    sdata = sd.read_zarr(tmp_path / "toy.zarr")
    figure, ax = plt.subplots(figsize=(4, 4), dpi=100)
    sdata.pl.render_images("virtual_he").pl.show(coordinate_systems="um", ax=ax)
    (shown,) = ax.get_images()
    drawn = np.asarray(shown.get_array(), float)[..., :3]
    drawn *= 255 if drawn.max() <= 1 else 1
    whole = sthist.tiles.read_region(sdata, "virtual_he", (0, 0, size_um, size_um), 0.5)
    # It takes the nearest pixel where it draws an image smaller than it is.
    expected = resize(whole.astype(float), drawn.shape)
    assert np.corrcoef(drawn.ravel(), expected.ravel())[0, 1] > 0.97
    assert abs(drawn.mean() - expected.mean()) < 1
    np.testing.assert_allclose(ax.get_xlim(), (0, size_um), atol=1)
    np.testing.assert_allclose(sorted(ax.get_ylim()), (0, size_um), atol=1)
    plt.close(figure)
