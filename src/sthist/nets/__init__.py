"""Networks and losses alone: tensors in, tensors out, so that they train where the rest is not installed."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "_discriminator": ["ClipFeatures", "MultilevelDiscriminator", "PatchDiscriminator", "augment"],
        "_lora": ["add_lora", "merge_lora", "plain_name"],
        "_losses": ["ImageTextLoss", "PerceptualLoss", "StructuralLoss", "l2_loss", "ssim"],
        "_pix2pix": ["Pix2Pix"],
        "_skip_vae": ["SkipVAE"],
        "_text": ["PromptEncoder", "byte_ids"],
        "_turbo": ["Turbo", "one_step_coefficients"],
        "_turbo_config": ["SD_TURBO", "SMALL", "TurboConfig"],
    },
)
