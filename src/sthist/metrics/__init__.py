"""Scores: pure functions of arrays and tables."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submodules=["image"],
    submod_attrs={
        "_classify": ["Interval", "auc_ovr", "bootstrap_interval", "confusion", "weighted_auc"],
        "_clustering": ["ClusteringScores", "LabelAgreement", "clustering", "label_agreement"],
        "_colocalization": ["ColocalizationScores", "colocalization"],
        "_expression.correlation": ["gene_pearson"],
        "_expression.scores": ["ExpressionScores", "expression"],
        "_expression.maps": ["morans_i"],
        "_expression.noise_ceiling": ["noise_ceiling"],
    },
)
