"""Settings of the one-step generator."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sthist.nets import SD_TURBO, SMALL, TurboConfig

ADAPTED = replace(SMALL, rank_unet=8, rank_vae=4, padding="zeros", trained="adapters")


class TestConfig:
    @pytest.mark.parametrize("config", [SD_TURBO, SMALL, ADAPTED], ids=["large", "small", "adapted"])
    def test_survives_json(self, config):
        assert TurboConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config

    @pytest.mark.parametrize(
        ("values", "match"),
        [
            ({"trained": "some"}, "'adapters', 'all'"),
            ({"unet_heads": (1,)}, "unet_heads has 1"),
            ({"timestep": 1000}, "0 to 999"),
            ({"rank_vae": -1}, "8 and -1"),
        ],
    )
    def test_nonsense_is_refused(self, values, match):
        with pytest.raises(ValueError, match=match):
            TurboConfig(**values)

    def test_unknown_settings_are_refused(self):
        with pytest.raises(ValueError, match=r"\['colour'\]"):
            TurboConfig.from_dict({"colour": 1})

    @pytest.mark.parametrize("px", [0, -8, 500, 508, 7])
    def test_sides_that_do_not_fit_are_refused(self, px):
        with pytest.raises(ValueError, match="multiple of 8"):
            SD_TURBO.check_px(512, px)

    @pytest.mark.parametrize(("px", "near"), [(500, ("496", "504")), (3, ("8", "16"))])
    def test_the_nearest_sides_are_named(self, px, near):
        with pytest.raises(ValueError, match=f"such as {near[0]} or {near[1]}"):
            SD_TURBO.check_px(px)
