"""Pixel windows of known physical size: specify, read, map, and write them back."""

from sthist._front_door import front_door as _front_door

__getattr__, __dir__, __all__ = _front_door(
    {
        "_imaging.nuclei": ["segment_nuclei"],
        "_imaging.shifts": ["TileShifts", "keep_shifted", "tile_shifts_um"],
        "tiles._blocks.canvas": ["Canvas"],
        "tiles._blocks.estimate": ["Plan"],
        "tiles._blocks.run": ["map_tiles"],
        "tiles._images.folder": ["FolderReader"],
        "tiles._images.image": ["Image", "open_image"],
        "tiles._images.reader": ["TileReader", "read_region"],
        "tiles._loader": ["TileLoader"],
        "tiles._molecules.densities": ["DensityTiles"],
        "tiles._molecules.overlay": ["Overlay"],
        "tiles._pairs": ["export_pairs", "paired_loader"],
        "tiles._sampling": ["farthest_points", "has_content"],
        "tiles._spec": ["TileSpec"],
    }
)
