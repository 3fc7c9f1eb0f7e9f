"""Views of crops: functions of what is drawn, each against another implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torchvision.transforms.functional import adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation

from sthist import stains
from sthist.nets import CellAugmentation, augment_cells, draw_views
from sthist.nets._cells.augment import DRAWN, recoloured

STILL = CellAugmentation(jitter=0.0, rotate=False, least_area=1.0, most_ratio=1.0, blur=0.0, erase=0.0)
VECTORS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
VECTORS = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)


def crops(n=4, side=24, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), np.uint8))


def drawn(n, **values):
    """What is drawn, one half where nothing else is said."""
    out = torch.full((n, len(DRAWN)), 0.5)
    for name, value in values.items():
        out[:, DRAWN.index(name)] = value
    return out


def changed(**fields):
    return CellAugmentation(**{**STILL.__dict__, **fields})


def middle(images, px=16):
    margin = (images.shape[1] - px) // 2
    return images[:, margin : margin + px, margin : margin + px].permute(0, 3, 1, 2).float() / 255


def test_nothing_drawn_is_the_middle():
    found = augment_cells(crops(), drawn(4), 16, STILL)
    torch.testing.assert_close(found, middle(crops()), atol=1e-4, rtol=0)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_turning_then_cropping_is_cropping_then_turning(quarters):
    how = changed(rotate=True)
    found = augment_cells(crops(), drawn(4, angle=quarters / 4), 16, how)
    first_turned = torch.rot90(crops(), quarters, (1, 2))
    torch.testing.assert_close(found, middle(first_turned), atol=1e-4, rtol=0)
    torch.testing.assert_close(found, torch.rot90(middle(crops()), quarters, (2, 3)), atol=1e-4, rtol=0)


def test_the_margin_holds_every_rotation():
    plain = torch.full((64, 72, 72, 3), 200, dtype=torch.uint8)
    plain[:, 0], plain[:, -1], plain[:, :, 0], plain[:, :, -1] = 0, 0, 0, 0  # the rim is never in view
    turned = augment_cells(plain, drawn(64, angle=torch.linspace(0, 1, 64)), 48, changed(rotate=True))
    torch.testing.assert_close(turned, torch.full_like(turned, 200 / 255))


def test_a_quarter_of_the_view_is_enlarged():
    how = changed(least_area=0.25)
    corner = augment_cells(crops(), drawn(4, area=0.0, x=0.0, y=0.0), 16, how)
    expected = torch.nn.functional.interpolate(
        middle(crops())[:, :, :9, :9], size=(18, 18), mode="bilinear", align_corners=False
    )[:, :, 1:16, 1:16]
    torch.testing.assert_close(corner[:, :, 1:16, 1:16], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "most", "other"),
    [
        ("brightness", 0.6, lambda image, amount: adjust_brightness(image, 1 + amount)),
        ("contrast", 0.7, lambda image, amount: adjust_contrast(image, 1 + amount)),
        ("saturation", 0.5, lambda image, amount: adjust_saturation(image, 1 + amount)),
        ("hue", 0.2, adjust_hue),
    ],
)
def test_colours_as_torchvision_changes_them(name, most, other):
    images = middle(crops())
    still = dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.0)
    u = dict(zip(DRAWN, drawn(4, jitter=0.0, **{name: torch.tensor([0.0, 0.3, 0.8, 1.0])}).unbind(1), strict=True))
    found = recoloured(images, u, changed(jitter=0.8, **{**still, name: most}))
    for image, result, share in zip(images, found, u[name], strict=True):
        # torchvision rounds the weights of grey to four digits.
        torch.testing.assert_close(result, other(image, most * (2 * float(share) - 1)), atol=2e-3, rtol=0)


def test_blur_as_of_scipy_inside():
    found = augment_cells(crops(side=48), drawn(4, blur=0.0, sigma=0.5), 32, changed(blur=0.1))
    expected = gaussian_filter(middle(crops(side=48), 32).numpy(), (0, 0, 1.05, 1.05), radius=6, mode="mirror")
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_an_erased_rectangle_has_its_area():
    bright = torch.full((1, 96, 96, 3), 255, dtype=torch.uint8)
    found = augment_cells(bright, drawn(1, erase=0.0, erased_area=1.0, erased_ratio=0.5), 64, changed(erase=0.3))
    assert float((found == 0).all(1).float().mean()) == pytest.approx(0.15, abs=0.02)


def test_stains_are_multiplied():
    amounts = np.random.default_rng(0).uniform(0.1, 1.0, (2, 24, 24, 2))
    images = torch.from_numpy(stains.to_rgb(amounts, VECTORS))
    one_sigma = 0.8413447
    u = drawn(2, haematoxylin=one_sigma, eosin=1 - one_sigma)
    found = augment_cells(images, u, 16, changed(stain=0.3), stains=VECTORS)
    expected = stains.to_rgb(amounts[:, 4:20, 4:20] * [1.3, 0.7], VECTORS, dtype=float)
    np.testing.assert_allclose(found.permute(0, 2, 3, 1), expected / 255, atol=0.006)


def test_stains_that_are_not_given():
    with pytest.raises(ValueError, match="needs the stain vectors"):
        augment_cells(crops(), drawn(4), 16, changed(stain=0.3))


def test_views_depend_on_seed_epoch_and_place_alone():
    some, more = draw_views(5, 3, 7), draw_views(9, 3, 7)
    np.testing.assert_array_equal(some, more[:5])
    assert some.shape == (5, 2, len(DRAWN))
    assert not np.array_equal(some, draw_views(5, 4, 7))
    assert not np.array_equal(some, draw_views(5, 3, 8))
    one = torch.from_numpy(draw_views(4, 0, 0)[:, 0])
    whole = augment_cells(crops(), one, 16)
    torch.testing.assert_close(augment_cells(crops()[2:3], one[2:3], 16), whole[2:3])
    assert 0 <= float(whole.min()) <= float(whole.max()) <= 1
    assert not torch.allclose(whole, augment_cells(crops(), torch.from_numpy(draw_views(4, 0, 0)[:, 1]), 16))
