"""The built-in encoder: its numbers against independent formulas, and what it promises of any tile."""

from __future__ import annotations

import re

import numpy as np
import pytest
from realdata import folder, picture
from scipy import ndimage, stats
from skimage.draw import disk
from skimage.feature import local_binary_pattern, structure_tensor, structure_tensor_eigenvalues

from sthist import stains
from sthist.encoders import Morphology, morphology_feature_names
from sthist.encoders._morphology import features as features
from sthist.encoders._morphology import kernels as kernels
from sthist.encoders._morphology import nuclei as nuclei
from sthist.encoders._morphology.encoder import FAMILIES, STAIN_VECTORS

NAMES = list(morphology_feature_names())
VECTORS = np.array(STAIN_VECTORS) / np.linalg.norm(STAIN_VECTORS, axis=1, keepdims=True)
EVERYWHERE = np.ones((40, 40), np.float32)


def noise(px=64, seed=0):
    """A tile with stains that vary over a few pixels, without ties."""
    generator = np.random.default_rng(seed)
    amounts = ndimage.gaussian_filter(generator.gamma(1, 1, (px, px, 2)), (2, 2, 0))
    amounts = 0.6 + 2.5 * (amounts - amounts.mean((0, 1)))
    return stains.to_rgb(np.maximum(amounts, 0) + generator.uniform(0, 0.05, (px, px, 2)), VECTORS)


def discs(radius_um=4.0, mpp=0.5, px=224, step_um=16.0):
    """Dark discs on a grid in pale tissue, and how many lie wholly in the tile."""
    amounts = np.zeros((px, px, 2), np.float32)
    amounts[...] = (0.15, 0.4)
    centres = np.arange(step_um / 2, px * mpp - radius_um, step_um) / mpp
    for y in centres:
        for x in centres:
            amounts[disk((y, x), radius_um / mpp, shape=(px, px))] = (1.5, 0.3)
    return stains.to_rgb(amounts, VECTORS), len(centres) ** 2


def plane(seed=0, n=40):
    """Smooth noise, float32."""
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(n, n)), 1.5).astype(np.float32) * 4


def of(tile, mpp=0.5):
    """Features by name."""
    return dict(zip(NAMES, Morphology(mpp=mpp).embed(tile[None])[0].tolist(), strict=True))


def log_amount(value):
    return np.log(1 + np.asarray(value) / 0.05)


def signed_log(value):
    return np.sign(value) * np.log(1 + abs(value))


class TestNames:
    def test_number_and_uniqueness(self):
        assert 100 <= len(NAMES) == len(set(NAMES)) <= 300
        encoder = Morphology()
        assert encoder.feature_names == NAMES
        assert encoder.dim == len(NAMES) == encoder.embed(noise()[None]).shape[1]

    @pytest.mark.parametrize("name", NAMES)
    def test_each_is_documented_once(self, name):
        assert sum(re.fullmatch(pattern, name) is not None for pattern in FAMILIES) == 1
        assert Morphology().feature_meaning(name)

    def test_each_documented_family_exists(self):
        assert all(any(re.fullmatch(pattern, name) for name in NAMES) for pattern in FAMILIES)

    def test_unknown_name(self):
        with pytest.raises(KeyError, match="nuclei_colour"):
            Morphology().feature_meaning("nuclei_colour")


class TestStains:
    tile = noise()
    amounts = stains.concentrations(tile, VECTORS)
    density = stains.optical_density(tile).mean(-1)
    tissue = density > 0.15

    def test_planes_are_those_of_stains(self):
        made = features.Stains.of(STAIN_VECTORS, 255.0)
        planes = kernels.separate(self.tile, made.density_of, made.inverse, np.float32(0.15))
        np.testing.assert_allclose(planes[:2].transpose(1, 2, 0), self.amounts, atol=1e-5)
        np.testing.assert_allclose(planes[2], self.density, atol=1e-5)
        np.testing.assert_array_equal(planes[3] > 0, self.tissue)

    def test_moments_and_quantiles(self):
        values, h = of(self.tile), self.amounts[..., 0][self.tissue].astype(float)
        assert values["haematoxylin_mean"] == pytest.approx(log_amount(h.mean()), abs=1e-4)
        assert values["haematoxylin_sd"] == pytest.approx(log_amount(h.std()), abs=1e-4)
        assert values["haematoxylin_skewness"] == pytest.approx(signed_log(stats.skew(h)), abs=1e-4)
        for q in (5, 25, 50, 75, 95):
            assert np.exp(values[f"haematoxylin_q{q:02d}"]) * 0.05 - 0.05 == pytest.approx(
                np.percentile(h, q), abs=0.01
            )

    def test_background_does_not_dilute(self):
        half = self.tile.copy()
        half[:, 32:] = 255
        values, left = of(half), of(np.ascontiguousarray(self.tile[:32, :32]))
        whole = self.amounts[:, :32][self.tissue[:, :32]].mean(0)
        assert values["eosin_mean"] == pytest.approx(log_amount(whole[1]), abs=1e-3)
        assert values["background_share"] > 0.7 > left["background_share"]

    def test_colours(self):
        values, red = of(self.tile), self.tile[..., 0] / 255.0
        assert values["red_mean"] == pytest.approx(red[self.tissue].mean(), abs=1e-5)
        assert values["red_sd"] == pytest.approx(red[self.tissue].std(), abs=1e-5)
        assert values["red_q90"] == pytest.approx(np.percentile(red[self.tissue], 90), abs=0.01)
        assert values["red_mean_with_background"] == pytest.approx(red.mean(), abs=1e-5)

    def test_correlation(self):
        pair = self.amounts[self.tissue].T.astype(float)
        assert of(self.tile)["haematoxylin_eosin_correlation"] == pytest.approx(np.corrcoef(pair)[0, 1], abs=1e-4)

    def test_twice_the_stain_shifts_logarithms(self):
        amounts = np.random.default_rng(0).uniform(0.5, 1.0, (64, 64, 2))
        once, twice = (of(stains.to_rgb(k * amounts, VECTORS)) for k in (1, 2))
        for name in ("haematoxylin_mean", "eosin_q50", "haematoxylin_sd"):
            assert twice[name] - once[name] == pytest.approx(np.log(2), abs=0.25)

    def test_own_vectors(self):
        vectors = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        tile = stains.to_rgb(np.full((1, 32, 32, 2), (0.8, 0.4)), vectors)
        values = dict(zip(NAMES, Morphology(stain_vectors=vectors).embed(tile)[0], strict=True))
        assert values["haematoxylin_mean"] == pytest.approx(log_amount(0.8), abs=0.02)
        assert values["eosin_mean"] == pytest.approx(log_amount(0.4), abs=0.02)


class TestTexture:
    def test_shrinking_by_a_whole_factor_is_a_block_mean(self):
        image = np.stack([plane(), plane(1)])
        blocks = image.reshape(2, 10, 4, 10, 4).mean((2, 4))
        np.testing.assert_allclose(kernels.shrink(image, 10), blocks, atol=1e-5)

    @pytest.mark.parametrize("m", [7, 13, 27, 40])
    def test_shrinking_keeps_the_mean(self, m):
        image = plane()[None]
        assert kernels.shrink(image, m).mean() == pytest.approx(image.mean(), abs=1e-5)

    def test_binomial(self):
        row = np.array([1, 2, 1]) / 4
        truth = ndimage.convolve(plane(), np.outer(row, row), mode="nearest")
        np.testing.assert_allclose(kernels.binomial(plane()), truth, atol=1e-5)

    def test_coherence_against_structure_tensor(self):
        image = plane().astype(float)
        row = np.array([1, 2, 1]) / 4
        tensor = [
            ndimage.convolve(each, np.outer(row, row), mode="nearest")
            for each in structure_tensor(image, sigma=1e-3, mode="nearest", order="rc")
        ]
        # The Sobel operator of scipy has weights of 8 in all, as the one here.
        large, small = structure_tensor_eigenvalues(tensor)
        near, overall = kernels.coherence(plane(), EVERYWHERE)
        total = (large + small).sum() + kernels.GRADIENT_NOISE * image.size
        assert near == pytest.approx((large - small).sum() / total, abs=1e-4)
        means = [each.sum() for each in tensor]
        assert overall == pytest.approx(np.hypot(means[0] - means[2], 2 * means[1]) / total, abs=1e-4)

    def test_stripes_are_aligned(self):
        stripes = np.sin(np.arange(40) / 2)[:, None] * np.ones(40)
        assert min(kernels.coherence(stripes.astype(np.float32), EVERYWHERE)) > 0.99

    def test_patterns_of_a_square_ring(self):
        image = plane()
        expected = np.zeros(10)
        ring = [(-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1)]
        for i in range(1, 39):
            for j in range(1, 39):
                bits = [image[i + a, j + b] >= image[i, j] + np.float32(0.03) for a, b in ring]
                runs = sum(bits[k] != bits[k - 1] for k in range(8))
                expected[sum(bits) if runs <= 2 else 9] += 1
        measured = kernels.binary_patterns(image, EVERYWHERE, np.float32(0.03))
        np.testing.assert_allclose(measured, expected / expected.sum(), atol=1e-9)

    def test_patterns_of_skimage(self):
        """Its ring is a circle of interpolated corners, which lies on the square where rows do not vary."""
        image = np.repeat((1e4 * plane()[:1]).astype(np.int32), 40, 0)
        theirs = local_binary_pattern(image, 8, 1, method="uniform")[1:-1, 1:-1].astype(int)
        shares = np.bincount(theirs.ravel(), minlength=10) / theirs.size
        measured = kernels.binary_patterns(image.astype(np.float32), EVERYWHERE, np.float32(0))
        np.testing.assert_allclose(measured, shares, atol=1e-9)

    def test_neighbour_correlation(self):
        image = plane().astype(float)
        centred = image - image.mean()
        pairs = np.concatenate([(centred[1:] * centred[:-1]).ravel(), (centred[:, 1:] * centred[:, :-1]).ravel()])
        measured = kernels.neighbour_correlation(plane(), EVERYWHERE)
        assert measured == pytest.approx(pairs.mean() / image.var(), abs=1e-4)

    def test_scales_are_micrometres(self):
        fine = noise(128)
        coarse = fine.reshape(64, 2, 64, 2, 3).mean((1, 3)).round().astype(np.uint8)
        a, b = of(fine, 0.5), of(coarse, 1.0)
        for name in ("texture_4um_haematoxylin_contrast", "texture_8um_coherence", "texture_8um_emptiness"):
            assert a[name] == pytest.approx(b[name], rel=0.05)


class TestNuclei:
    @pytest.mark.parametrize("radius_um", [3.0, 4.0, 5.0])
    def test_planted_discs(self, radius_um):
        tile, n = discs(radius_um)
        values = of(tile)
        assert values["sqrt_nuclei_density_per_mm2"] ** 2 * 0.112**2 == pytest.approx(n, abs=0.5)
        assert np.exp(values["nuclei_area_um2_median"]) == pytest.approx(np.pi * radius_um**2, rel=0.2)
        assert values["nuclei_eccentricity_median"] < 0.4
        assert values["nuclei_roundness_median"] > 0.8
        assert np.exp(values["nuclei_distance_um_median"]) - 1 == pytest.approx(16.0, rel=0.05)
        assert values["nuclei_haematoxylin_median"] == pytest.approx(log_amount(1.5), abs=0.15)
        assert values["nuclei_area_share"] == pytest.approx(n * np.pi * radius_um**2 / 112**2, rel=0.2)
        assert values["nuclei_unevenness"] < 0.4

    def test_ellipse(self):
        y, x = np.mgrid[:60, :60] - 30.0
        stain = np.where((y / 6) ** 2 + (x / 12) ** 2 < 1, 1.5, 0.1).astype(np.float32)
        _, table = nuclei.find(stain, stain, 0.75)
        row = dict(zip(nuclei.COLUMNS, table[0], strict=True))
        assert len(table) == 1
        assert row["eccentricity"] == pytest.approx(np.sqrt(1 - 0.25), abs=0.05)
        assert abs(np.sin(row["angle"])) == pytest.approx(1, abs=0.05)

    def test_aligned_and_anyhow(self):
        one_way, anyhow = np.full(50, 0.3), np.linspace(0, np.pi, 50, endpoint=False)
        assert features.alignment(one_way, np.full(50, 0.9)) == pytest.approx(1)
        assert features.alignment(anyhow, np.full(50, 0.9)) == pytest.approx(0, abs=1e-9)

    def test_agrees_with_segment_nuclei_on_real_tissue(self):
        from sthist.tiles import segment_nuclei

        crop = picture(folder("her2st") / "C3.jpg")[:, 4400:5200, 4400:5200].transpose(1, 2, 0)
        tiles = crop.reshape(5, 160, 5, 160, 3).swapaxes(1, 2).reshape(-1, 160, 160, 3)
        ours = [of(tile, 0.688)["sqrt_nuclei_density_per_mm2"] ** 2 * 0.11008**2 for tile in tiles]
        theirs = [segment_nuclei(stains.concentrations(tile, VECTORS)[..., 0], 0.688).max() for tile in tiles]
        assert np.corrcoef(ours, theirs)[0, 1] > 0.8
        assert np.mean(ours) == pytest.approx(np.mean(theirs), rel=0.35)

    def test_none_where_pixels_are_coarse(self):
        values = of(discs()[0], mpp=3.0)
        assert all(value == 0 for name, value in values.items() if "nuclei" in name)


class TestAnyTile:
    @pytest.mark.parametrize("mpp", [0.25, 0.5, 1.0, 3.19, 10.0])
    @pytest.mark.parametrize("px", [16, 35, 224])
    @pytest.mark.parametrize("level", [0, 1, 128, 254, 255])
    def test_constant(self, level, px, mpp):
        values = of(np.full((px, px, 3), level, np.uint8), mpp)
        assert np.isfinite(list(values.values())).all()
        assert all(value == 0 for name, value in values.items() if "nuclei" in name and "between" not in name)
        assert all(values[f"texture_{scale}um_coherence"] < 1e-5 for scale in (1, 2, 4, 8, 16))

    def test_blank(self):
        values = of(np.full((32, 32, 3), 255, np.uint8))
        ones = {name for name, value in values.items() if value != 0}
        assert ones == {
            "background_share",
            *(f"{colour}_mean_with_background" for colour in ("red", "green", "blue")),
            *(f"texture_{scale}um_emptiness" for scale in (1, 2, 4, 8, 16)),
        }
        assert all(values[name] == pytest.approx(1) for name in ones)

    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("px", [16, 17, 50, 223])
    def test_random_pixels(self, px, seed):
        tiles = np.random.default_rng(seed).integers(0, 256, (2, px, px, 3), dtype=np.uint8)
        for mpp in (0.1, 0.688, 3.0):
            rows = Morphology().embed(tiles, mpp=mpp)
            assert np.isfinite(rows).all()
            assert np.abs(rows).max() < 200

    @pytest.mark.parametrize("px", [64, 97, 224])
    def test_rotations_and_flips(self, px):
        tile = noise(px)
        turned = [np.rot90(each, k) for each in (tile, tile[::-1]) for k in range(4)]
        rows = Morphology(mpp=0.5).embed(np.ascontiguousarray(turned))
        assert rows[0][NAMES.index("sqrt_nuclei_density_per_mm2")] > 0
        np.testing.assert_allclose(rows, rows[:1].repeat(8, 0), rtol=2e-3, atol=2e-3)

    def test_independent_of_the_batch_and_of_threads(self):
        from sthist import settings

        tiles = np.stack([noise(64, seed) for seed in range(6)])
        encoder, threads = Morphology(), settings.threads
        together = encoder.embed(tiles)
        try:
            settings.threads = 1
            alone = np.concatenate([encoder.embed(tile[None]) for tile in tiles[::-1]])[::-1]
        finally:
            settings.threads = threads
        np.testing.assert_array_equal(together, alone)
        np.testing.assert_array_equal(together, Morphology().embed(tiles))

    def test_no_tiles(self):
        assert Morphology().embed(np.zeros((0, 32, 32, 3), np.uint8)).shape == (0, len(NAMES))

    def test_strided_tiles(self):
        tiles = np.stack([noise(64)] * 2)
        np.testing.assert_array_equal(
            Morphology().embed(tiles[:, ::2, ::2]), Morphology().embed(tiles[:, ::2, ::2].copy())
        )

    def test_leaves_tiles_alone(self):
        tiles = noise()[None]
        before = tiles.copy()
        tiles.flags.writeable = False
        Morphology().embed(tiles)
        np.testing.assert_array_equal(tiles, before)


class TestArguments:
    @pytest.mark.parametrize("bad", [{"mpp": 0}, {"mpp": float("nan")}, {"white": -1}])
    def test_numbers(self, bad):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Morphology(**bad)

    @pytest.mark.parametrize("bad", [np.eye(3), [[1, 0, 0], [1, 0, 0]], [[np.nan, 0, 0], [0, 1, 0]]])
    def test_vectors(self, bad):
        with pytest.raises(ValueError, match="stain_vectors"):
            Morphology(stain_vectors=bad)

    @pytest.mark.parametrize("shape", [(2, 15, 15, 3), (2, 32, 30, 3), (32, 32, 3), (2, 32, 32, 4)])
    def test_shapes(self, shape):
        with pytest.raises(ValueError, match="tiles"):
            Morphology().embed(np.zeros(shape, np.uint8))

    def test_provenance_is_plain(self):
        import json

        assert json.loads(json.dumps(Morphology(mpp=0.688).provenance))["mpp"] == 0.688
