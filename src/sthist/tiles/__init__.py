"""Pixel windows of known physical size: specify, read, map, and write them back."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "_canvas": ["Canvas"],
        "_folder": ["FolderReader"],
        "_loader": ["TileLoader"],
        "_map": ["map_tiles"],
        "_nuclei": ["segment_nuclei"],
        "_overlay": ["Overlay"],
        "_pairs": ["export_pairs", "paired_loader"],
        "_plan": ["Plan"],
        "_reader": ["TileReader", "read_region"],
        "_sampling": ["farthest_points", "has_content"],
        "_shift": ["TileShifts", "keep_shifted", "tile_shifts_um"],
        "_spec": ["TileSpec"],
    },
)
