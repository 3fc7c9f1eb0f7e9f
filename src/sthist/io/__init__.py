"""Readers of vendor folders, slides and loose files, as SpatialData in micrometres; exports for viewers."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "_annotations": ["read_annotations"],
        "_assemble": ["assemble"],
        "_cosmx": ["cosmx"],
        "_export": ["export_geojson", "export_ome_tiff", "export_xenium_explorer"],
        "_he": ["slide"],
        "_hest": ["hest"],
        "_hest_table": ["hest_table"],
        "_legacy_st": ["legacy_st"],
        "_merscope": ["merscope"],
        "_stimage": ["stimage"],
        "_tile_folder": ["tile_folder"],
        "_visium": ["visium"],
        "_visium_hd": ["visium_hd"],
        "_xenium": ["xenium"],
    },
)
