"""Readers of vendor folders, slides and loose files, as SpatialData in micrometres; exports for viewers."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "_annotations.read": ["read_annotations"],
        "_assemble": ["assemble"],
        "_composition": ["read_composition"],
        "_platforms.cosmx": ["cosmx"],
        "_export": ["export_geojson", "export_ome_tiff", "export_xenium_explorer"],
        "_parts.sample": ["slide"],
        "_research.hest": ["hest"],
        "_research.hest_table": ["hest_table"],
        "_research.legacy_st": ["legacy_st"],
        "_platforms.merscope": ["merscope"],
        "_research.stimage": ["stimage"],
        "_research.tile_folder": ["tile_folder"],
        "_platforms.visium": ["visium"],
        "_platforms.visium_hd": ["visium_hd"],
        "_platforms.xenium": ["xenium"],
    },
)
