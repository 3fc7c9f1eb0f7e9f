"""Pairs of tiles that a translation is trained on, and how they are augmented."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import sthist
from sthist.models import TranslationConfig
from sthist.systems.virtual_he.training_set.pairs import BRIGHTNESS, HAZE, SectionPairs, add_haze, open_section
from sthist.systems.virtual_he.training_set.sections import find_sections
from sthist.tiles import Overlay, TileReader, TileSpec

SPEC = TileSpec(size_um=32, px=64)
CENTRES = np.array([[120.0, 130.0], [170.0, 150.0], [210.0, 200.0], [260.0, 180.0], [150.0, 260.0]])


@pytest.fixture(scope="module")
def sdata():
    return sthist.datasets.toy(size_um=400)


def pairs_of(data, *, augment=True, dots_s=(), **style):
    config = TranslationConfig(size_um=SPEC.size_um, px=SPEC.px, **style)
    sections = find_sections(data, with_points=config.mode != "none")
    readers = [open_section(section, config, dots_s=dots_s) for section in sections]
    which = np.arange(len(CENTRES)) % len(sections)
    return SectionPairs(readers, which, CENTRES, [f"prompt {i}" for i in range(len(CENTRES))], augment=augment)


def eight_ways(tile):
    """All orientations of a square, by transposing and flipping alone."""
    for mirrored in (tile, tile.transpose(1, 0, 2)):
        for rows in (slice(None), slice(None, None, -1)):
            for columns in (slice(None), slice(None, None, -1)):
                yield mirrored[rows, columns]


class TestReading:
    def test_plain_tiles_are_those_of_the_readers(self, sdata):
        pairs = pairs_of(sdata)
        inputs, targets = pairs.read(np.array([2, 0]))
        overlay = Overlay(sdata, SPEC, dot_s=0.3, seed=0)
        assert np.array_equal(inputs, overlay.read(CENTRES[[2, 0]]))
        assert np.array_equal(targets, TileReader(sdata, "he", SPEC, fill=255).read(CENTRES[[2, 0]]))
        assert inputs.dtype == targets.dtype == np.uint8
        assert (len(pairs), pairs.px, pairs.prompts[3]) == (5, 64, "prompt 3")

    def test_a_part_reads_the_same_tiles(self, sdata):
        pairs = pairs_of(sdata)
        part = pairs.part(np.array([4, 1]))
        assert part.prompts == ["prompt 4", "prompt 1"]
        for whole, some in zip(pairs.read(np.array([4, 1])), part.read(np.array([0, 1])), strict=True):
            assert np.array_equal(whole, some)

    def test_each_tile_is_of_its_own_section(self, sdata):
        other = sthist.datasets.toy(size_um=400, seed=1)
        together = pairs_of({"a": sdata, "b": other})
        _, targets = together.read(np.arange(5))
        for row, data in enumerate([sdata, other, sdata, other, sdata]):
            assert np.array_equal(targets[row], TileReader(data, "he", SPEC, fill=255).read(CENTRES[[row]])[0])

    def test_threads_do_not_disturb_each_other(self, sdata):
        pairs = pairs_of(sdata, dots_s=(1.0,))
        alone = [pairs.read(np.arange(5), (0, epoch)) for epoch in range(6)]
        with ThreadPoolExecutor(6) as pool:
            together = list(pool.map(lambda epoch: pairs.read(np.arange(5), (0, epoch)), range(6)))
        for one, other in zip(alone, together, strict=True):
            assert np.array_equal(one[0], other[0])
            assert np.array_equal(one[1], other[1])


class TestAugmentation:
    def test_drawn_from_seed_epoch_and_row_alone(self, sdata):
        pairs = pairs_of(sdata, dots_s=(0.8,))
        inputs, targets = pairs.read(np.arange(5), (3, 7))
        for rows in ([4, 2, 0], [1], [3, 3]):
            some = pairs.read(np.array(rows), (3, 7))
            assert np.array_equal(some[0], inputs[rows])
            assert np.array_equal(some[1], targets[rows])
        again = pairs_of(sdata, dots_s=(0.8,)).read(np.arange(5), (3, 7))
        assert np.array_equal(again[0], inputs)
        assert np.array_equal(again[1], targets)
        for other in ((3, 8), (4, 7), (7, 3)):
            assert not np.array_equal(pairs.read(np.arange(5), other)[0], inputs)

    def test_input_and_histology_are_turned_alike_in_all_eight_ways(self, sdata):
        """The H&E stays as it is but for its orientation, and the stain has that orientation, too."""
        pairs = pairs_of(sdata, mode="none")
        stain, histology = (tiles[0] for tiles in pairs.read(np.array([0])))
        stains_turned = [tile[..., 0].ravel().astype(float) for tile in eight_ways(stain)]
        seen = set()
        for epoch in range(40):
            drawn_stain, drawn_histology = (tiles[0] for tiles in pairs.read(np.array([0]), (0, epoch)))
            ways = [way for way, tile in enumerate(eight_ways(histology)) if np.array_equal(tile, drawn_histology)]
            likeness = [np.corrcoef(drawn_stain[..., 0].ravel(), tile)[0, 1] for tile in stains_turned]
            assert ways == [int(np.argmax(likeness))]
            assert max(likeness) > 0.9
            seen.update(ways)
        assert seen == set(range(8))

    def test_haze_varies_smoothly_and_within_its_limits(self):
        changes = []
        for seed in range(20):
            grey = np.full((64, 64, 3), 100, np.uint8)
            add_haze(grey, np.random.default_rng(seed))
            change = grey.astype(int) - 100
            assert np.abs(np.diff(change, axis=0)).max() <= 4
            assert np.ptp(change, axis=-1).max() == 0
            changes.append(change[..., 0])
        assert np.abs(changes).max() <= round(255 * HAZE)
        assert np.abs(changes).max() > 200 * HAZE
        assert all(np.ptp(change) > 10 for change in changes)
        assert abs(np.mean(changes)) < 3
        dark = np.zeros((64, 64, 3), np.uint8)
        add_haze(dark, np.random.default_rng(0))
        assert dark.min() == 0

    def test_black_and_white_of_the_stain_are_drawn(self, sdata, monkeypatch):
        """Each tile is a straight line of the stain's share of its range, within the limits that are stated."""
        monkeypatch.setattr("sthist.systems.virtual_he.training_set.pairs.add_haze", lambda *_: None)
        pairs = pairs_of(sdata, mode="none")
        low, high = Overlay(sdata, SPEC, mode="none").limits
        reader = TileReader(sdata, "morphology_focus", SPEC)
        share = (reader.read(CENTRES[:1])[0].astype(float) - low) / (high - low)
        blacks, whites = [], []
        for epoch in range(16):
            drawn = pairs.read(np.array([0]), (0, epoch))[0][0]
            # Orientation does not matter to sorted values.
            values, plain = np.sort(drawn[..., 0].ravel()) / 255, np.sort(share.ravel())
            between = (values > 0.1) & (values < 0.9)
            slope, intercept = np.polyfit(plain[between], values[between], 1)
            assert np.abs(slope * plain[between] + intercept - values[between]).max() < 3 / 255
            blacks.append(-intercept / slope)
            whites.append((1 - intercept) / slope)
        assert -HAZE - 0.01 < min(blacks) < -0.05
        assert 0.05 < max(blacks) < HAZE + 0.01
        assert 1 / BRIGHTNESS - 0.02 < min(whites) < 0.95
        assert 1.05 < max(whites) < BRIGHTNESS + 0.02

    def test_palette_is_dealt_anew_in_each_epoch(self, sdata):
        pairs = pairs_of(sdata, augment=False, dot_um=1.5)
        plain, *epochs = (pairs.read(np.arange(5), draw) for draw in (None, (0, 0), (0, 1)))
        coloured = [np.ptp(inputs.astype(int), axis=-1) > 20 for inputs, _ in epochs]
        both = coloured[0] & coloured[1]
        assert both.mean() > 0.05
        differ = (np.abs(epochs[0][0].astype(int) - epochs[1][0]).max(-1) > 20)[both]
        assert differ.mean() > 0.5
        # Nothing else is drawn.
        assert np.array_equal(epochs[0][1], plain[1])
        bare = pairs_of(sdata, augment=False, mode="none").read(np.arange(5), (0, 0))[0]
        touched = (
            pairs_of(sdata, augment=False, mode="mono", color="red", dot_um=1.5).read(np.arange(5))[0] != bare
        ).any(-1)
        assert np.array_equal(epochs[0][0][~touched], bare[~touched])

    def test_a_fixed_palette_stays(self, sdata):
        pairs = pairs_of(sdata, augment=False, palette="fixed")
        assert np.array_equal(pairs.read(np.arange(5), (0, 0))[0], pairs.read(np.arange(5))[0])

    def test_sizes_of_dots_are_drawn_per_tile(self, sdata):
        pairs = pairs_of(sdata, augment=False, palette="fixed", dots_s=(2.0, 8.0))
        overlays = [
            Overlay(sdata, SPEC, dot_s=size, palette="fixed", seed=0).read(CENTRES[:1])[0] for size in (0.3, 2.0, 8.0)
        ]
        seen = set()
        for epoch in range(20):
            drawn = pairs.read(np.array([0]), (0, epoch))[0][0]
            (size,) = (k for k, tile in enumerate(overlays) if np.array_equal(tile, drawn))
            seen.add(size)
        assert seen == {0, 1, 2}
        # Tiles that are not augmented have the first.
        assert np.array_equal(pairs.read(np.array([0]))[0][0], overlays[0])


class TestLimits:
    """Of an overlay that is drawn in another way."""

    def test_as_if_made_with_them(self, sdata):
        overlay = Overlay(sdata, SPEC, seed=0)
        low, high = overlay.limits
        before = overlay.read(CENTRES)
        other = overlay.restyled(limits=(low, 2 * high))
        assert np.array_equal(other.read(CENTRES), Overlay(sdata, SPEC, limits=(low, 2 * high), seed=0).read(CENTRES))
        assert np.array_equal(overlay.read(CENTRES), before)
        assert overlay.limits == (low, high)
        both = overlay.restyled(limits=(low, 2 * high), dot_s=4.0)
        assert both.dot_px == overlay.restyled(dot_s=4.0).dot_px
        assert both.limits == (low, 2 * high)

    @pytest.mark.parametrize("limits", [(5.0, 5.0), (9.0, 1.0), (0.0, np.nan)])
    def test_reversed_or_equal_are_refused(self, sdata, limits):
        with pytest.raises(ValueError, match="first must be less"):
            Overlay(sdata, SPEC, mode="none").restyled(limits=limits)
