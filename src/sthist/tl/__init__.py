"""Tools: one verb per task. Each finds its elements, calls a model, and writes the result."""

from sthist._front_door import front_door as _front_door

# A name here is a verb; the system that it belongs to is a folder of sthist.systems.
__getattr__, __dir__, __all__ = _front_door(
    {
        "systems.annotation.annotate": ["annotate"],
        "systems.annotation.heat_maps.verb": ["heatmap"],
        "systems.annotation.train": ["train_annotator"],
        "systems.cells.apply": ["cell_expression"],
        "systems.cells.train": ["train_cell_expression"],
        "systems.cells.moco.train": ["train_cell_encoder"],
        "systems.composition.apply": ["composition"],
        "systems.composition.train": ["train_composition"],
        "systems.deconvolution.verb": ["deconvolve"],
        "systems.expression.apply": ["expression"],
        "systems.expression.train": ["train_expression"],
        "systems.synthesis.apply": ["synthesize"],
        "systems.synthesis.train": ["adapt_local", "train_central"],
        "systems.virtual_he.apply": ["virtual_he"],
        "systems.virtual_he.train": ["train_virtual_he"],
        "tl._cell_types": ["cell_types"],
        "tl._colocalization.verb": ["colocalization"],
        "tl._match_cells": ["match_cells"],
        "tl._niches": ["niches"],
        "tl._pool_topk": ["pool_topk"],
        "tl._transfer_labels": ["transfer_labels"],
    }
)
