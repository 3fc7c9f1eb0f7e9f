"""Which platform a folder is of, by the files in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

STORE_FILES = ("zarr.json", ".zgroup", ".zattrs")
FILES = {
    "xenium": ("experiment.xenium",),
    "cosmx": ("*exprMat_file.csv*", "*_tx_file.csv*"),
    "merscope": ("detected_transcripts.*", "cell_by_gene.csv", "images/micron_to_mosaic_pixel_transform.csv"),
    "visium_hd": ("*feature_slice.h5", "binned_outputs", "square_0*um"),
    "visium": ("*filtered_feature_bc_matrix*", "*raw_feature_bc_matrix*", "spatial"),
    "spatialdata": STORE_FILES,
}
"""One of these lies in a folder of the platform, and in no folder of another."""

COVERS = {"visium_hd": "visium"}
"""Folders of the first have the files of the second, too."""


def platforms_of(folder: Path) -> dict[str, str]:
    """The platforms that a folder can be of, each with the file that says so."""
    found = {}
    for platform, patterns in FILES.items():
        match = next((file for pattern in patterns for file in sorted(folder.glob(pattern))), None)
        if match is not None:
            found[platform] = match.relative_to(folder).as_posix()
    for platform, covered in COVERS.items():
        if platform in found:
            found.pop(covered, None)
    return found


def find_platform(folder: Path, flag: str = "--platform") -> str:
    """The platform of a folder; ``flag`` is how a user names it where the files do not tell."""
    if not folder.exists():
        raise FileNotFoundError(f"There is no {folder}.")
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; give the folder of the sample, or its SpatialData store.")
    found = platforms_of(folder)
    if len(found) == 1:
        return next(iter(found))
    if found:
        signs = ", ".join(f"{file} of {platform}" for platform, file in found.items())
        raise ValueError(f"{folder} has files of {len(found)} platforms: {signs}. Say which is meant: {flag}.")
    inside = [(each.name, next(iter(of))) for each in _folders(folder) if len(of := platforms_of(each)) == 1]
    looked_for = "; ".join(f"{platform}: {' or '.join(patterns)}" for platform, patterns in FILES.items())
    hint = f" Its folder {inside[0][0]!r} looks like one of {inside[0][1]}: give that." if inside else ""
    raise ValueError(f"{folder} is of no platform that is known by its files.{hint} Looked for {looked_for}.")


def _folders(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
