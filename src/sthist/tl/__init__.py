"""Tools: one verb per task. Each finds its elements, calls a model, and writes the result."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "_annotate": ["annotate"],
        "_heatmap": ["heatmap"],
        "_niches": ["niches"],
        "_pool_topk": ["pool_topk"],
        "_train_annotator": ["train_annotator"],
        "_train_virtual_he": ["train_virtual_he"],
        "_transfer_labels": ["transfer_labels"],
        "_virtual_he": ["virtual_he"],
    },
)
