"""Backbones and checkpoints of one-step generators in the layouts of others, tiny and random."""

from __future__ import annotations

import json
from dataclasses import replace

import torch

from sthist.nets import SMALL

WORDS = ["a</w>", "lung</w>", "l", "u", "n", "g", "lu", "lun", "!", "g</w>", "<|startoftext|>", "<|endoftext|>"]
TINY = replace(
    SMALL,
    backbone="tiny",
    vae_channels=(8, 8, 16),
    norm_groups=4,
    scaling=0.5,
    unet_channels=(8, 16),
    unet_heads=(1, 2),
    text_dim=16,
    vocabulary=len(WORDS),
    tokens=7,
    timestep=999,
    rank_unet=3,
    rank_vae=2,
    skip_init=1e-5,
    padding="zeros",
    trained="adapters",
)


def autoencoder():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=TINY.vae_channels,
        layers_per_block=TINY.vae_layers,
        norm_num_groups=TINY.norm_groups,
        scaling_factor=TINY.scaling,
    ).eval()


def unet():
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=TINY.unet_channels,
        layers_per_block=TINY.unet_layers,
        attention_head_dim=TINY.unet_heads,
        cross_attention_dim=TINY.text_dim,
        norm_num_groups=TINY.norm_groups,
        use_linear_projection=True,
    ).eval()


def text_model():
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=TINY.vocabulary,
            hidden_size=TINY.text_dim,
            intermediate_size=TINY.text_hidden,
            num_hidden_layers=TINY.text_layers,
            num_attention_heads=TINY.text_heads,
            max_position_embeddings=TINY.tokens,
            hidden_act="gelu",
            bos_token_id=len(WORDS) - 2,
            eos_token_id=len(WORDS) - 1,
        )
    ).eval()


def write_backbone(folder):
    """A backbone as diffusers and transformers write it, random."""
    from diffusers import DDPMScheduler

    torch.manual_seed(1)
    autoencoder().save_pretrained(folder / "vae")
    unet().save_pretrained(folder / "unet")
    text_model().save_pretrained(folder / "text_encoder")
    DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(
        folder / "scheduler"
    )
    tokens = folder / "tokenizer"
    tokens.mkdir()
    (tokens / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(WORDS)}))
    (tokens / "merges.txt").write_text("#version: 0.2\nl u\nlu n\nlun g</w>\n")
    (tokens / "tokenizer_config.json").write_text(
        json.dumps({"pad_token": "!", "bos_token": WORDS[-2], "eos_token": WORDS[-1], "unk_token": WORDS[-1]})
    )
    return folder


def disturbed(module, scale=0.2):
    for name, parameter in module.named_parameters():
        if "lora_" in name or "skip_conv" in name or name.endswith(("conv_in.weight", "conv_in.bias")):
            torch.nn.init.normal_(parameter, std=scale)
    return module


class Upstream:
    """The published implementation, in short: adapters by diffusers, activations kept by the encoder."""

    def __init__(self, folder) -> None:
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from peft import LoraConfig

        self.vae = AutoencoderKL.from_pretrained(folder / "vae")
        self.unet = UNet2DConditionModel.from_pretrained(folder / "unet")
        for i, (a, b) in enumerate(((8, 16), (8, 16), (8, 8)), 1):
            setattr(self.vae.decoder, f"skip_conv_{i}", torch.nn.Conv2d(a, b, 1, bias=False))
        targets = [*TINY.vae_targets]
        self.vae.add_adapter(
            LoraConfig(r=2, init_lora_weights="gaussian", target_modules=targets), adapter_name="vae_skip"
        )
        self.unet.add_adapter(LoraConfig(r=3, init_lora_weights="gaussian", target_modules=[*TINY.unet_targets]))
        disturbed(self.vae, 0.1)
        disturbed(self.unet, 0.1)

    def checkpoint(self):
        unet, vae = self.unet.state_dict(), self.vae.state_dict()
        return {
            "unet_lora_target_modules": [*TINY.unet_targets],
            "vae_lora_target_modules": [*TINY.vae_targets],
            "rank_unet": 3,
            "rank_vae": 2,
            "state_dict_unet": {name: v for name, v in unet.items() if "lora" in name or "conv_in" in name},
            "state_dict_vae": {name: v for name, v in vae.items() if "lora" in name or "skip" in name},
        }

    @torch.no_grad()
    def __call__(self, image, prompt):
        seen, decoder = [], self.vae.decoder
        for block in self.vae.encoder.down_blocks:
            block.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        for i, block in enumerate(decoder.up_blocks):
            conv = getattr(decoder, f"skip_conv_{i + 1}")
            block.register_forward_pre_hook(lambda _, args, conv=conv, i=i: (args[0] + conv(seen[-1 - i]), *args[1:]))
        latent = self.vae.encode(image).latent_dist.mode() * TINY.scaling
        noise = self.unet(latent, torch.tensor([999]), encoder_hidden_states=prompt).sample
        kept = 0.0046600983  # Published product of 1 - beta over the 1000 steps.
        clean = (latent - (1 - kept) ** 0.5 * noise) / kept**0.5
        return self.vae.decode(clean / TINY.scaling).sample.clamp(-1, 1)
