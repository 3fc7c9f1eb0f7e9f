"""Losses: against formulas and independent implementations, and where their gradients go."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from sthist.nets._translation import losses as adversarial
from sthist.nets._translation import losses as losses


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def images(n: int = 2, side: int = 48) -> torch.Tensor:
    """Smooth pictures from -1 to 1."""
    rough = torch.rand(n, 3, side // 4, side // 4) * 2 - 1
    return nn.functional.interpolate(rough, size=(side, side), mode="bicubic").clamp(-1, 1)


def towers():
    """A tiny CLIP of open_clip, with random weights."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(layers=2, width=32, head_width=16, patch_size=8, image_size=32)
    text = CLIPTextCfg(context_length=8, vocab_size=50, width=16, heads=2, layers=1)
    return CLIP(16, vision, text).eval()


@pytest.mark.parametrize("data_range", [1.0, 255.0])
def test_ssim_is_that_of_scikit_image(data_range):
    from skimage.metrics import structural_similarity

    one, other = images(), (images() + 0.1 * torch.randn(2, 3, 48, 48)).clamp(-1, 1)
    one, other = (data_range * (x / 2 + 0.5) for x in (one, other))
    found = losses.ssim(one, other, data_range=data_range)
    settings = {"channel_axis": 0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = [
        structural_similarity(x.double().numpy(), y.double().numpy(), data_range=data_range, **settings)
        for x, y in zip(one, other, strict=True)
    ]
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)


def test_structural_loss_of_one_level_is_what_ssim_lacks():
    one, other = images(), images()
    found = losses.StructuralLoss(1, gradient_weight=0)(one, other)
    torch.testing.assert_close(found, 1 - losses.ssim(one / 2 + 0.5, other / 2 + 0.5).mean())


def test_edges_by_a_loop():
    one, other = images(1), images(1)
    difference = (one - other)[0].double().numpy()
    steps = [np.abs(np.diff(difference, axis=axis)).mean() / 2 for axis in (1, 2)]  # of the range, which is 2
    weighed = losses.StructuralLoss(1, gradient_weight=3.0)(one, other) - losses.StructuralLoss(1, gradient_weight=0)(
        one, other
    )
    assert float(weighed) == pytest.approx(3 * np.mean(steps), rel=1e-4)


def test_structural_loss_is_zero_for_equal_images_and_positive_else():
    loss, one = losses.StructuralLoss(), images()
    assert float(loss(one, one)) == pytest.approx(0, abs=1e-6)
    assert float(loss(one, one)) >= 0
    values = [float(loss(one, one + strength * torch.randn_like(one))) for strength in (0.01, 0.1, 0.5)]
    assert 0 < values[0] < values[1] < values[2]


def test_structural_loss_does_not_depend_on_order_or_orientation():
    loss, one, other = losses.StructuralLoss(), images(), images()
    expected = loss(one, other)
    torch.testing.assert_close(loss(other, one), expected)
    for turned in (lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.mT, lambda x: x.flip(0)):
        torch.testing.assert_close(loss(turned(one), turned(other)), expected)


def test_structural_loss_sees_a_blur_that_l2_forgives():
    sharp = (torch.rand(1, 3, 48, 48) > 0.5) * 0.6
    blurred = nn.functional.avg_pool2d(sharp, 3, stride=1, padding=1)
    lighter = sharp + (blurred - sharp).square().mean().sqrt()  # as far off by squares, all edges kept
    torch.testing.assert_close(losses.l2_loss(lighter, sharp), losses.l2_loss(blurred, sharp))
    assert float(losses.StructuralLoss()(blurred, sharp)) > 2 * float(losses.StructuralLoss()(lighter, sharp))


def test_structural_loss_descends():
    real, fake = images(1), torch.zeros(1, 3, 48, 48, requires_grad=True)
    loss, optimiser = losses.StructuralLoss(), torch.optim.Adam([fake], lr=0.05)
    start = float(loss(fake.detach(), real))
    for _ in range(60):
        optimiser.zero_grad()
        loss(fake, real).backward()
        optimiser.step()
    assert torch.isfinite(fake).all()
    assert float(loss(fake.detach(), real)) < 0.2 * start


def test_structural_gradient_is_that_of_finite_differences():
    real, fake = images(1, 24).double()[:, :1], (images(1, 24).double()[:, :1]).requires_grad_()
    loss = losses.StructuralLoss(2, gradient_weight=0.5)
    assert torch.autograd.gradcheck(lambda x: loss(x, real), fake, eps=1e-6, atol=1e-6)


def test_gradient_is_finite_at_equal_images():
    fake = torch.zeros(1, 3, 48, 48, requires_grad=True)
    losses.StructuralLoss()(fake, torch.zeros(1, 3, 48, 48)).backward()
    assert torch.isfinite(fake.grad).all()


def test_autocast_does_not_change_ssim():
    one, other = images(), images()
    expected = losses.StructuralLoss()(one, other)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(losses.StructuralLoss()(one, other), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.l2_loss(torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4)), "have to agree"),
        (lambda: losses.ssim(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)), "at least 11 x 11"),
        (lambda: losses.StructuralLoss()(torch.zeros(1, 3, 43, 99), torch.zeros(1, 3, 43, 99)), "at least 44 x 44"),
        (lambda: losses.StructuralLoss(0), "at least one level"),
        (lambda: losses.StructuralLoss(gradient_weight=-1), "weight from 0"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_l2_is_the_mean_square():
    assert float(losses.l2_loss(torch.full((2, 3, 4, 4), 0.5), torch.full((2, 3, 4, 4), -1.0))) == 2.25


def test_lpips_is_a_loss_and_stays_as_it_is():
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    network = _NoTrainLpips(net="squeeze", pnet_rand=True)
    loss, real = losses.PerceptualLoss(network), images()
    fake = images().requires_grad_()
    value = loss.train()(fake, real)
    torch.testing.assert_close(value, network(fake, real).mean())
    value.backward()
    assert fake.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in network.parameters())
    assert float(loss(real, real)) == 0


def test_frozen_is_not_trained_saved_or_counted():
    inner = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Dropout())
    outer = nn.ModuleDict({"frozen": losses.Frozen(inner), "free": nn.Linear(2, 2)})
    outer.train()
    assert not any(module.training for module in inner.modules())
    assert len(list(outer.parameters())) == 2
    assert set(outer.state_dict()) == {"free.weight", "free.bias"}
    before = [buffer.clone() for buffer in inner.buffers()]
    outer["frozen"](torch.randn(4, 3, 5, 5, requires_grad=True)).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, inner.buffers(), strict=True))
    assert all(parameter.grad is None for parameter in inner.parameters())


def test_frozen_moves_along():
    inner = nn.Linear(2, 2)
    nn.ModuleList([losses.Frozen(inner)]).to(torch.float64)
    assert inner.weight.dtype == torch.float64


def test_image_text_loss_is_the_diagonal_of_clips_logits():
    clip, tokens, pictures = towers(), torch.randint(1, 50, (3, 8)), images(3, 32)
    loss = losses.ImageTextLoss(clip.visual, losses.Frozen(clip, "encode_text"), size=32)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (losses.CLIP_MEAN, losses.CLIP_STD))
    with torch.no_grad():
        seen = clip.encode_image((pictures / 2 + 0.5 - mean) / std, normalize=True)
        logits = 100 * seen @ clip.encode_text(tokens, normalize=True).T
    torch.testing.assert_close(loss(pictures, tokens), 1 - logits.diag().mean() / 100, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(loss(pictures, loss.embed_text(tokens)), loss(pictures, tokens))
    # With equal texts the whole matrix says the same.
    same = tokens[:1].repeat(3, 1)
    with torch.no_grad():
        logits = 100 * seen @ clip.encode_text(same, normalize=True).T
    torch.testing.assert_close(loss(pictures, same), 1 - logits.mean() / 100, atol=1e-5, rtol=1e-4)


def test_image_text_gradient_reaches_the_images_through_resizing():
    clip, pictures = towers().requires_grad_(True), images(2, 48).requires_grad_()
    loss = losses.ImageTextLoss(clip.visual, losses.Frozen(clip, "encode_text"), size=32)
    loss(pictures, torch.randint(1, 50, (2, 8))).backward()
    assert torch.isfinite(pictures.grad).all()
    assert (pictures.grad.abs().sum((1, 2, 3)) > 0).all()
    assert all(parameter.grad is None for parameter in clip.parameters())


def test_both_towers_move_along():
    clip = towers()
    loss = losses.ImageTextLoss(clip.visual, losses.Frozen(clip, "encode_text"), size=32).to(torch.float64)
    assert {parameter.dtype for parameter in clip.parameters()} == {torch.float64}
    assert not loss.state_dict()
    assert 0 <= float(loss(images(1, 32).double(), torch.ones(1, 8, dtype=torch.int64))) <= 2


def test_texts_of_others_do_not_matter():
    clip, pictures = towers(), images(2, 32).requires_grad_()
    loss = losses.ImageTextLoss(clip.visual, losses.Frozen(clip, "encode_text"), size=32)
    gradients = []
    for last in (3, 17):
        tokens = torch.tensor([[5] * 8, [last] * 8])
        (gradient,) = torch.autograd.grad(loss(pictures, tokens), pictures)
        gradients.append(gradient)
    torch.testing.assert_close(gradients[0][0], gradients[1][0])
    assert not torch.allclose(gradients[0][1], gradients[1][1])


def test_image_text_refused():
    loss = losses.ImageTextLoss(nn.Identity(), size=4)
    with pytest.raises(ValueError, match="2 images and 1 texts"):
        loss(torch.zeros(2, 3, 4, 4), torch.zeros(1, 5))
    with pytest.raises(ValueError, match="text tower"):
        loss(torch.zeros(1, 3, 4, 4), torch.zeros(1, 5, dtype=torch.int64))


def levels(value: float, n: int = 2) -> list[torch.Tensor]:
    """Logits as the discriminator of three levels gives them."""
    return [torch.full(shape, value) for shape in ((n, 3, 3), (n, 3, 3), (n, 1))]


def test_losses_at_zero_logits():
    zero = levels(0.0)
    for target in (0.8, 1.0):
        both = float(adversarial.sigmoid_discriminator_loss(zero, zero, target=target))
        assert both == pytest.approx(6 * math.log(2), rel=1e-6)  # 2.0794 of the real, 2.0794 of the fake
        assert float(adversarial.sigmoid_generator_loss(zero, target=target)) == pytest.approx(
            3 * math.log(2), rel=1e-6
        )
    assert float(adversarial.hinge_discriminator_loss(zero, zero)) == 6
    assert float(adversarial.hinge_generator_loss(zero)) == 0


def test_sigmoid_losses_are_cross_entropies():
    real, fake = ([torch.randn(2, 3, 3), torch.randn(2, 1)] for _ in range(2))
    bce = nn.functional.binary_cross_entropy_with_logits
    expected = sum(bce(x, torch.full_like(x, 0.8)) for x in real) + sum(bce(x, torch.zeros_like(x)) for x in fake)
    torch.testing.assert_close(adversarial.sigmoid_discriminator_loss(real, fake), expected)
    torch.testing.assert_close(
        adversarial.sigmoid_generator_loss(fake), sum(bce(x, torch.full_like(x, 0.8)) for x in fake)
    )


def test_generator_loss_has_a_floor():
    at = math.log(0.8 / 0.2)
    assert adversarial.entropy() == pytest.approx(0.5004, abs=1e-4)
    assert float(adversarial.sigmoid_generator_loss(levels(at))) == pytest.approx(3 * adversarial.entropy(), rel=1e-6)
    assert all(
        float(adversarial.sigmoid_generator_loss(levels(at + off))) > 3 * adversarial.entropy()
        for off in (-1, -0.1, 0.1, 1)
    )


def test_hinge_by_hand():
    real, fake = [torch.tensor([2.0, 0.5]), torch.tensor([[-1.0]])], [torch.tensor([-3.0, 0.0]), torch.tensor([[1.0]])]
    assert float(adversarial.hinge_discriminator_loss(real, fake)) == (0 + 0.5) / 2 + 2 + (0 + 1) / 2 + 2
    assert float(adversarial.hinge_generator_loss(fake)) == 1.5 - 1
    assert float(adversarial.hinge_generator_loss(fake[0])) == 1.5


def test_hinge_leaves_alone_what_is_told_apart():
    real, fake = torch.tensor([1.5, 0.0], requires_grad=True), torch.tensor([-1.5, 0.0], requires_grad=True)
    adversarial.hinge_discriminator_loss(real, fake).backward()
    assert real.grad.tolist() == [0.0, -0.5]
    assert fake.grad.tolist() == [0.0, 0.5]
