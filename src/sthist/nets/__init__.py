"""Networks and losses alone: tensors in, tensors out, so that they train where the rest is not installed."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "_cells.mil": [
            "CellNetwork",
            "negative_binomial_mean",
            "negative_binomial_total",
            "segment_mean",
        ],
        "_cells.augment": ["CellAugmentation", "augment_cells", "draw_views"],
        "_cells.moco": ["LARS", "MoCo", "cell_backbone", "contrastive_loss"],
        "_composition.hist2cell": ["GraphAttention", "Hist2Cell"],
        "_composition.ensemble": ["Ensemble"],
        "_composition.mlp": ["CompositionMLP", "negative_correlation"],
        "_expression.augmentation": ["augment_tiles"],
        "_expression.autoencoders": ["FeatureMap"],
        "_expression.contrastive": ["BLEEP", "McLSTExp"],
        "_expression.deepspot": ["DeepSpot"],
        "_expression.genst": ["CLIP", "GenST"],
        "_expression.losses": ["info_nce", "soft_target_loss", "soft_targets"],
        "_expression.regression": ["EmbeddingMLP", "ResNetRegressor", "STNet"],
        "_expression.retrieval": ["Retrieval"],
        "_expression.standardized": ["Standardized"],
        "_segmentation.nucleus_unet": ["NucleusUNet"],
        "_translation.discriminator": ["ClipFeatures", "MultilevelDiscriminator", "PatchDiscriminator", "augment"],
        "_translation.lora": ["add_lora", "merge_lora", "plain_name"],
        "_translation.losses": ["ImageTextLoss", "PerceptualLoss", "StructuralLoss", "l2_loss", "ssim"],
        "_translation.pix2pix": ["Pix2Pix"],
        "_translation.skip_vae": ["SkipVAE"],
        "_translation.text": ["PromptEncoder", "byte_ids"],
        "_translation.turbo": ["Turbo", "one_step_coefficients"],
        "_translation.turbo_config": ["SD_TURBO", "SMALL", "TurboConfig"],
    },
)
