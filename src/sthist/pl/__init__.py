"""Plots: matplotlib axes in, axes out."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "_alignment": ["alignment"],
        "_classification": ["confusion", "roc"],
        "_composition.colocalization": ["colocalization"],
        "_cells.gallery": ["cell_gallery"],
        "_cells.scores": ["cell_type_scores"],
        "_cells.spots": ["spot_cells"],
        "_embedding": ["embedding"],
        "_benchmark": ["ablation", "benchmark", "image_metrics"],
        "_expression.branches": ["reconstructions"],
        "_expression.maps": ["clusters", "gene_maps"],
        "_expression.ranking": ["gene_ranking"],
        "_composition.maps": ["composition"],
        "_niches": ["niche_composition"],
        "_overlay": ["overlay", "tiles"],
        "_regions.cells": ["cells"],
        "_regions.outlines": ["tile_grid", "tissue"],
        "_regions.slide": ["regions", "spots", "tiles_on_slide"],
        "_scores": ["score_map", "top_tiles"],
        "_synthesis.augmentation": ["augmentation", "gene_errors"],
        "_synthesis.clusters": ["synthetic_clusters"],
        "_synthesis.gallery": ["guidance_sweep", "synthetic_tiles"],
        "_synthesis.judged": ["synthetic_composition", "synthetic_embedding"],
        "_training": ["training_history"],
        "_view.view": ["view"],
        "_virtual_he": ["virtual_he"],
    },
)
