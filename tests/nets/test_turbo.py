"""The one-step generator: what it adds to a diffusion network, and what it leaves as it was."""

from __future__ import annotations

from dataclasses import replace
from threading import Thread

import pytest
import torch

from sthist.nets import SD_TURBO, SMALL, PromptEncoder, SkipVAE, Turbo, byte_ids
from sthist.nets._translation.lora import lora_layers

ADAPTED = replace(SMALL, rank_unet=8, rank_vae=4, skip_init=1e-5, padding="zeros", trained="adapters")
"""The small network, trained as the large one is."""


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def image():
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def prompt():
    return torch.randn(1, SMALL.tokens, SMALL.text_dim, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def large():
    """The generator of SD-Turbo, without its numbers."""
    with torch.device("meta"):
        return Turbo(SD_TURBO).adapt()


def count(parameters):
    return sum(parameter.numel() for parameter in parameters)


def disturb(module, names, scale=0.1):
    """Random values in the weights whose names hold one of the given parts."""
    for name, parameter in module.named_parameters():
        if any(part in name for part in names):
            torch.nn.init.normal_(parameter, std=scale)


class TestSizes:
    def test_trained_weights_of_the_real_network(self, large):
        # Counted layer by layer in the architecture of the publication: 9,505,160 of about 950 million.
        unet = count(p for n, p in large.unet.named_parameters() if "lora" in n)
        vae = count(p for n, p in large.vae.named_parameters() if "lora" in n)
        skips = count(p for n, p in large.vae.named_parameters() if "skip" in n and "lora" not in n)
        first = count(large.unet.conv_in.parameters())
        assert (unet, vae, skips, first) == (8_108_576, 893_224, 491_520, 11_840)
        assert count(p for p in large.parameters() if p.requires_grad) == 9_505_160

    def test_all_weights_of_the_real_network(self, large):
        assert count(p for n, p in large.unet.named_parameters() if "lora" not in n) == 865_910_724
        assert count(p for n, p in large.vae.named_parameters() if "lora" not in n and "skip" not in n) == 83_653_863

    def test_adapted_layers_and_their_weight(self, large):
        unet, vae = dict(lora_layers(large.unet)), dict(lora_layers(large.vae))
        assert (len(unet), len(vae)) == (257, 74)
        assert sum(name.startswith("encoder") for name in vae) == 31
        assert {layer.scaling["default"] for layer in unet.values()} == {1.0}
        assert {layer.scaling["default"] for layer in vae.values()} == {2.0}

    def test_activations_that_travel(self, large):
        with torch.no_grad():
            latent, skips = large.vae.encode(torch.empty(1, 3, 512, 512, device="meta"))
        assert latent.shape == (1, 4, 64, 64)
        assert [tuple(a.shape[1:]) for a in skips] == [
            (128, 512, 512),
            (128, 256, 256),
            (256, 128, 128),
            (512, 64, 64),
        ]
        shapes = [tuple(layer.base_layer.weight.shape[:2]) for layer in large.vae.skip_convs]
        assert shapes == [(512, 512), (512, 256), (512, 128), (256, 128)]

    def test_images_that_do_not_fit_are_refused(self, prompt):
        with pytest.raises(ValueError, match="multiple of 8"):
            Turbo(SMALL)(torch.zeros(1, 3, 16, 20), prompt)

    @torch.no_grad()
    def test_every_multiple_of_the_stride_goes_through(self, prompt):
        # An odd latent, which the U-Net halves and doubles again.
        assert Turbo(SMALL)(torch.zeros(1, 3, 24, 40), prompt).shape == (1, 3, 24, 40)

    @pytest.mark.parametrize(("padding", "alike"), [("replicate", True), ("zeros", False)])
    @torch.no_grad()
    def test_an_even_image_has_no_border_where_it_goes_on_beyond(self, prompt, padding, alike):
        even = torch.tensor([0.3, -0.2, 0.5])[:, None, None].expand(1, 3, 64, 64)
        out = Turbo(replace(SMALL, padding=padding)).eval()(even, prompt)
        assert out.std() > 0.0
        assert (out.std((2, 3)).max() < 1e-4) == alike

    def test_latents_have_the_announced_shape(self, image):
        turbo = Turbo(SMALL)
        latent, _ = turbo.vae.encode(image)
        assert turbo.latent_shape(image) == latent.shape


class TestSkips:
    @torch.no_grad()
    def test_zero_weights_are_no_skips(self, image, prompt):
        turbo = Turbo(replace(ADAPTED, skip_init=0.0)).adapt().eval()
        assert torch.equal(turbo(image, prompt), turbo(image, prompt, skips=False))
        assert torch.equal(turbo(image, prompt, skip_scale=0.0), turbo(image, prompt, skips=False))

    @torch.no_grad()
    def test_first_weights_are_nearly_no_skips(self, image):
        vae = SkipVAE(ADAPTED)
        latent, skips = vae.encode(image)
        without = vae.decode(latent)
        torch.testing.assert_close(vae.decode(latent, skips), without, atol=1e-2, rtol=0)
        distances = [(vae.decode(latent, skips, scale) - without).norm() for scale in (0.0, 10.0, 100.0, 1000.0)]
        assert distances == sorted(distances)
        assert distances[0] == 0 < distances[1]

    @torch.no_grad()
    def test_without_skips_it_is_the_autoencoder_of_diffusers(self, image):
        from diffusers import AutoencoderKL

        vae = SkipVAE(SMALL).eval()
        theirs = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=SMALL.vae_channels,
            layers_per_block=SMALL.vae_layers,
            norm_num_groups=SMALL.norm_groups,
        ).eval()
        theirs.load_state_dict({n: v for n, v in vae.state_dict().items() if not n.startswith("skip_conv")})
        posterior = theirs.encode(image).latent_dist
        latent, _ = vae.encode(image)
        assert torch.equal(latent, posterior.mode())
        assert torch.equal(vae.decode(latent), theirs.decode(latent).sample)
        noise = torch.randn(latent.shape)
        torch.testing.assert_close(vae.encode(image, noise)[0], posterior.mean + posterior.std * noise)

    @torch.no_grad()
    def test_a_skip_reaches_the_resolution_that_it_came_from(self, image):
        vae = SkipVAE(SMALL)
        latent, skips = vae.encode(image)
        inputs = []
        hooks = [
            block.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for block in vae.decoder.up_blocks
        ]
        vae.decode(latent, skips)
        with_skips = list(inputs)
        inputs.clear()
        vae.decode(latent, (torch.zeros_like(skips[0]), *skips[1:]))
        for hook in hooks:
            hook.remove()
        # The finest activation enters before the last block, and nowhere else.
        same = [torch.equal(a, b) for a, b in zip(with_skips, inputs, strict=True)]
        assert same == [True, True, True, False]

    @torch.no_grad()
    def test_calls_do_not_see_each_other(self, image, prompt):
        vae = SkipVAE(SMALL)
        other = image.flip(-1)
        first, second = vae.encode(image), vae.encode(other)
        assert torch.equal(vae.decode(*first), vae.decode(*vae.encode(image)))
        assert torch.equal(vae.decode(*second), vae.decode(*vae.encode(other)))

    def test_threads_share_one_network(self, image, prompt):
        turbo = Turbo(SMALL).eval()
        images = [image, image.flip(-1), image[..., :16], -image]
        found = [None] * len(images)

        def work(i):
            with torch.inference_mode():
                found[i] = turbo(images[i], prompt)

        threads = [Thread(target=work, args=(i,)) for i in range(len(images))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with torch.inference_mode():
            assert all(torch.equal(a, turbo(b, prompt)) for a, b in zip(found, images, strict=True))


class TestAdapters:
    @torch.no_grad()
    def test_new_adapters_change_nothing(self, image, prompt):
        turbo = Turbo(ADAPTED).eval()
        before = turbo(image, prompt)
        torch.testing.assert_close(turbo.adapt()(image, prompt), before, rtol=0, atol=5e-5)  # some kernels round

    @torch.no_grad()
    def test_merging_changes_nothing_either(self, image, prompt):
        turbo = Turbo(ADAPTED).adapt().eval()
        names = [name for name, _ in Turbo(ADAPTED).named_parameters()]
        plain = turbo(image, prompt)
        disturb(turbo, ["lora_B"], 0.05)
        adapted = turbo(image, prompt)
        assert not torch.allclose(adapted, plain, atol=1e-3)
        turbo.merge()
        torch.testing.assert_close(turbo(image, prompt), adapted, atol=1e-4, rtol=1e-4)
        assert [name for name, _ in turbo.named_parameters()] == names
        assert not any(parameter.requires_grad for parameter in turbo.parameters())

    def test_gradients_only_where_they_belong(self, image, prompt):
        turbo = Turbo(ADAPTED).adapt()
        disturb(turbo, ["lora_B"], 0.05)
        turbo(image, prompt).square().mean().backward()
        with_gradient = {name for name, p in turbo.named_parameters() if p.grad is not None}
        allowed = ("lora_", "unet.conv_in", "skip_conv_")
        assert with_gradient == {name for name, _ in turbo.named_parameters() if any(part in name for part in allowed)}
        assert all(p.grad.abs().sum() > 0 for name, p in turbo.named_parameters() if "unet.conv_in" in name)

    def test_small_trains_all_its_weights(self, image, prompt):
        turbo = Turbo(SMALL).adapt()
        turbo(image, prompt).square().mean().backward()
        assert all(parameter.requires_grad for parameter in turbo.parameters())
        assert all(parameter.grad is not None for parameter in turbo.parameters())

    def test_checkpointing_gives_the_same_gradients(self, image, prompt):
        turbo = Turbo(ADAPTED).adapt().train()
        disturb(turbo, ["lora_B"], 0.05)
        gradients = []
        for on in (False, True, False):
            turbo.checkpoint_gradients(on).zero_grad()
            calls = []
            hook = turbo.vae.decoder.mid_block.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
            turbo(image, prompt).square().mean().backward()
            hook.remove()
            assert len(calls) == (2 if on else 1)
            gradients.append([p.grad.clone() for p in turbo.parameters() if p.requires_grad])
        torch.testing.assert_close(gradients[1], gradients[0])
        torch.testing.assert_close(gradients[2], gradients[0])

    @torch.no_grad()
    def test_state_comes_back(self, image, prompt):
        turbo, other = Turbo(ADAPTED).adapt().eval(), Turbo(ADAPTED).adapt().eval()
        disturb(turbo, ["lora_", "skip_conv", "unet.conv_in"])
        base = {name: value for name, value in turbo.state_dict().items() if "lora" not in name}
        other.load_state_dict(base, strict=False)
        disturb(other, ["lora_", "skip_conv", "unet.conv_in"])
        assert not torch.equal(other(image, prompt), turbo(image, prompt))
        other.load_trained_state(turbo.trained_state())
        assert torch.equal(other(image, prompt), turbo(image, prompt))

    def test_state_is_what_is_trained(self):
        turbo = Turbo(ADAPTED).adapt()
        state = turbo.trained_state()
        assert count(state.values()) == count(p for p in turbo.parameters() if p.requires_grad)
        assert not any("default" in name or "base_layer" in name for name in state)

    @pytest.mark.parametrize("damage", ["missing", "of another shape", "not of this network", "not finite"])
    def test_states_of_others_are_refused_whole(self, damage):
        turbo = Turbo(ADAPTED).adapt()
        before = {name: value.clone() for name, value in turbo.trained_state().items()}
        state = {name: value + 1 for name, value in before.items()}
        if damage == "missing":
            del state["unet.conv_in.weight"]
        elif damage == "of another shape":
            state["unet.conv_in.bias"] = torch.zeros(3)
        elif damage == "not of this network":
            state["unet.conv_in.scale"] = torch.zeros(3)
        else:
            state["unet.conv_in.bias"] = torch.full_like(state["unet.conv_in.bias"], torch.nan)
        with pytest.raises(ValueError, match=f"1 {damage}, such as 'unet.conv_in"):
            turbo.load_trained_state(state)
        assert all(torch.equal(value, before[name]) for name, value in turbo.trained_state().items())

    def test_merged_adapters_cannot_be_kept(self):
        with pytest.raises(ValueError, match="before merge"):
            Turbo(ADAPTED).adapt().merge().trained_state()


class TestForward:
    @torch.no_grad()
    def test_deterministic_or_drawn(self, image, prompt):
        turbo = Turbo(SMALL).eval()
        assert torch.equal(turbo(image, prompt), turbo(image, prompt))
        shape = turbo.latent_shape(image)
        one, two = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in (3, 4))
        assert torch.equal(turbo(image, prompt, one), turbo(image, prompt, one.clone()))
        assert not torch.equal(turbo(image, prompt, one), turbo(image, prompt, two))
        torch.testing.assert_close(turbo(image, prompt, torch.zeros(shape)), turbo(image, prompt))

    @torch.no_grad()
    def test_depends_on_the_prompt_image_by_image(self, image):
        turbo = Turbo(SMALL).eval()
        encoder = PromptEncoder(SMALL).draw()
        lung, breast = encoder(byte_ids(["This is a lung H&E image", "This is a breast H&E image"], SMALL.tokens))
        both = turbo(image, torch.stack([lung, breast]))
        torch.testing.assert_close(both[:1], turbo(image[:1], lung[None]), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(both[1:], turbo(image[1:], breast[None]), atol=1e-5, rtol=1e-4)
        assert not torch.allclose(both[:1], turbo(image[:1], breast[None]), atol=1e-5)

    @torch.no_grad()
    def test_stays_in_range(self, image, prompt):
        turbo = Turbo(SMALL).eval()
        disturb(turbo, ["decoder.conv_out"], 10.0)
        out = turbo(image, prompt)
        assert out.min() >= -1
        assert out.max() <= 1
        assert out.shape == image.shape
