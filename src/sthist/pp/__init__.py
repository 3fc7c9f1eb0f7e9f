"""Preprocessing: scale, alignment, tissue, tiles, stain, genes, sums."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "_aggregate": ["aggregate"],
        "_align": ["align"],
        "_dense_features.verb": ["dense_features"],
        "_embed": ["embed"],
        "_gene_panel.panel": ["GenePanel", "gene_panel"],
        "_gene_panel.sets": ["gene_set"],
        "_genes": ["genes"],
        "_labels": ["label_regions"],
        "_match_genes": ["GeneMatch", "match_genes"],
        "_nuclei.assign": ["assign_cells"],
        "_nuclei.verb": ["nuclei"],
        "_proportions": ["proportions"],
        "_scale": ["set_scale"],
        "_stain_normalize.verb": ["stain_normalize"],
        "_stain_normalize.normalizer": ["StainNormalizer"],
        "_stain_normalize.reference": ["StainReference"],
        "_tiles": ["tiles"],
        "_tissue.background": ["background"],
        "_tissue.outlines": ["tissue"],
        "_tma.verb": ["tma"],
    },
)
