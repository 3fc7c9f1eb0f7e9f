"""Discriminators: their sizes, what they see, and whom they teach."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sthist.nets._translation import discriminator as discriminator
from sthist.nets._translation.losses import hinge_discriminator_loss, hinge_generator_loss


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def tower(**changes):
    """A vision transformer of open_clip."""
    from open_clip.model import CLIPVisionCfg, _build_vision_tower

    config = {"layers": 4, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 56} | changes
    return _build_vision_tower(16 if config["width"] == 32 else 512, CLIPVisionCfg(**config))


def tiny(**kwargs) -> discriminator.MultilevelDiscriminator:
    features = discriminator.ClipFeatures(tower(), blocks=(1, 3), size=56)
    return discriminator.MultilevelDiscriminator(features, map_channels=(32, 32), embedding_dim=16, hidden=8, **kwargs)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def test_of_vit_b_32():
    with torch.device("meta"):
        visual = tower(layers=12, width=768, head_width=64, patch_size=32, image_size=224)
        network = discriminator.MultilevelDiscriminator(discriminator.ClipFeatures(visual))
        logits = network(torch.zeros(2, 3, 512, 512))
    assert count(network) == 3_671_555
    assert [tuple(level.shape) for level in logits] == [(2, 3, 3), (2, 3, 3), (2, 1)]


def test_features_are_those_of_the_blocks():
    visual, images, seen = tower(), torch.rand(2, 3, 56, 56) * 2 - 1, {}
    for i in (0, 2):
        visual.transformer.resblocks[i].register_forward_hook(lambda _m, _a, out, i=i: seen.update({i: out}))
    maps = discriminator.ClipFeatures(visual, blocks=(1, 3), size=56)(images)
    for found, i in zip(maps, (0, 2), strict=False):
        expected = seen[i][:, 1:].reshape(2, 7, 7, 32)  # without the class token
        torch.testing.assert_close(found, expected.permute(0, 3, 1, 2))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (discriminator.CLIP_MEAN, discriminator.CLIP_STD))
    torch.testing.assert_close(maps[-1], visual((images / 2 + 0.5 - mean) / std))


def test_frozen_features_get_no_gradient_and_are_not_saved():
    network, images = tiny(), (torch.rand(2, 3, 64, 64) * 2 - 1).requires_grad_()
    hinge_generator_loss(network(images)).backward()
    visual = network.features.network.visual.network
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in visual.parameters())
    assert (images.grad.abs().sum((1, 2, 3)) > 0).all()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert all(name.startswith("heads.") for name in network.state_dict())
    assert not visual.training


def test_a_step_of_one_leaves_the_other():
    network, generator = tiny(), nn.Conv2d(3, 3, 1)
    source, real = torch.rand(2, 3, 56, 56), torch.rand(2, 3, 56, 56)
    parts = {"d": network, "g": generator}
    before = {side: [parameter.detach().clone() for parameter in part.parameters()] for side, part in parts.items()}
    hinge_discriminator_loss(network(real), network(generator(source).detach())).backward()
    assert all(parameter.grad is None for parameter in generator.parameters())
    torch.optim.SGD(network.parameters(), 0.1).step()
    assert all(torch.equal(a, b) for a, b in zip(before["g"], generator.parameters(), strict=True))
    # Biases of the last layers may stay: near 0 they are drawn up by the real as far as down by the made.
    changed = [not torch.equal(a, b) for a, b in zip(before["d"], network.parameters(), strict=True) if a.ndim > 1]
    assert len(changed) == 6
    assert all(changed)
    network.requires_grad_(False)
    hinge_generator_loss(network(generator(source))).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in generator.parameters())


def test_heads_are_spectrally_normal():
    network = tiny()
    for _ in range(50):
        network(torch.rand(1, 3, 56, 56))
    for head in network.heads:
        for module in head:
            if hasattr(module, "weight"):
                norm = np.linalg.norm(module.weight.detach().flatten(1).numpy(), 2)
                assert norm == pytest.approx(1, abs=1e-2)


def test_it_learns_to_tell_dark_from_light():
    network = tiny(augmentations=())
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    light, dark = (torch.full((4, 3, 56, 56), v) + 0.1 * torch.randn(4, 3, 56, 56) for v in (0.6, -0.6))
    for _ in range(30):
        optimiser.zero_grad()
        hinge_discriminator_loss(network(light[:2]), network(dark[:2])).backward()
        optimiser.step()
    network.eval()
    with torch.no_grad():
        of_light, of_dark = network(light[2:]), network(dark[2:])
    assert min(float(level.mean()) for level in of_light) > 0
    assert max(float(level.mean()) for level in of_dark) < 0


def test_state_gives_the_same_logits():
    one, other, images = tiny(augmentations=()).eval(), tiny(augmentations=()).eval(), torch.rand(1, 3, 56, 56)
    other.features = one.features
    assert not torch.equal(one(images)[0], other(images)[0])
    other.load_state_dict(one.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(one(images), other(images), strict=True))


def test_all_of_it_moves_along():
    network = tiny().to(torch.float64)
    assert all(level.dtype == torch.float64 for level in network(torch.rand(1, 3, 64, 64, dtype=torch.float64)))


def test_training_goes_on_from_a_state_as_if_nothing_had_been():
    one, images = tiny(augmentations=()), torch.rand(2, 3, 56, 56)
    one(images)
    other = tiny(augmentations=())
    other.features = one.features
    other.load_state_dict(one.state_dict())
    for _ in range(3):  # each goes one step further in the power iteration of the norms
        assert all(torch.equal(a, b) for a, b in zip(one(images), other(images), strict=True))


def test_blur_keeps_an_even_map_and_shrinks_it():
    found = discriminator.Blur()(torch.ones(1, 2, 7, 7))
    assert found.shape == (1, 2, 6, 6)
    torch.testing.assert_close(found[..., 1:-1, 1:-1], torch.ones(1, 2, 4, 4))


def test_augment_follows_its_generator():
    images = torch.rand(4, 3, 32, 40) * 2 - 1
    one, again, other = (discriminator.augment(images, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert one.shape == images.shape
    assert discriminator.augment(images, ()) is images


def test_translation_moves_each_image_by_whole_pixels():
    images = torch.rand(6, 2, 32, 40) + 1
    moved = discriminator.augment(images, ["translation"])
    padded = nn.functional.pad(images, (5, 5, 4, 4))
    shifts = set()
    for before, after in zip(padded, moved, strict=True):
        places = [(y, x) for y in range(9) for x in range(11) if torch.equal(before[:, y : y + 32, x : x + 40], after)]
        assert len(places) == 1
        shifts.add(places[0])
    assert len(shifts) > 1


def test_cutout_sets_a_square_to_zero():
    cut = discriminator.augment(torch.ones(200, 1, 16, 16), ["cutout"])[:, 0] == 0
    sizes = torch.stack([cut.any(2).sum(1), cut.any(1).sum(1)], 1)
    assert torch.equal(cut.sum((1, 2)), sizes.prod(1))  # a rectangle
    assert int(sizes.min()) >= 4
    assert int(sizes.max()) == 8  # half the side, less where it leaves the image
    assert cut.any(0).all()


def test_colour_keeps_what_it_does_not_touch():
    grey = torch.full((5, 3, 8, 8), 0.25)
    changed = discriminator.augment(grey, ["color"])
    assert float(changed.flatten(1).std(1).max()) < 1e-6  # even and grey stays even and grey
    assert float((changed - grey).abs().max()) <= 0.5
    # Saturation and contrast keep the mean; brightness moves it.
    images = torch.rand(5, 3, 8, 8)
    moved = discriminator.augment(images, ["color"]).mean((1, 2, 3)) - images.mean((1, 2, 3))
    assert float(moved.abs().max()) <= 0.5


def test_augmentation_passes_gradients():
    images = torch.rand(3, 3, 16, 16, requires_grad=True)
    discriminator.augment(images).sum().backward()
    assert torch.isfinite(images.grad).all()
    assert images.grad.abs().sum() > 0


def test_refused():
    with pytest.raises(ValueError, match="no augmentation 'colour'"):
        tiny(augmentations=("colour",))
    with pytest.raises(ValueError, match="none of"):
        discriminator.PatchDiscriminator(norm="layer")


@pytest.mark.parametrize(("layers", "field"), [(1, 16), (2, 34), (3, 70)])
def test_receptive_field(layers, field):
    network = discriminator.PatchDiscriminator(1, width=2, layers=layers, norm="none")
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.1)  # nothing cancels
    images = torch.ones(1, 1, 160, 160, requires_grad=True)
    logits = network(images)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    seen = images.grad[0, 0] != 0
    assert int(seen.any(0).sum()) == int(seen.any(1).sum()) == field


def test_patch_discriminator_has_the_size_of_the_paper():
    # C64-C128-C256-C512 and one map of logits, on input and output: biases where no norm follows, two per normed
    # channel.
    pairs = [(6, 64), (64, 128), (128, 256), (256, 512), (512, 1)]
    expected = sum(16 * a * b for a, b in pairs) + 64 + 1 + 2 * (128 + 256 + 512)
    with torch.device("meta"):
        network = discriminator.PatchDiscriminator()
    assert count(network) == expected == 2_768_705
    assert network(torch.zeros(1, 6, 256, 256, device="meta")).shape == (1, 1, 30, 30)
