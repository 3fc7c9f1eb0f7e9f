"""Refuse a wheel or an sdist that lacks what belongs into it, holds what does not, or is large."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

MOST_BYTES = 15_000_000
SUFFIXES = {".py", ".json", ".safetensors", ".md", ".typed", ".js", ".css", ".html", ".svg", ".txt"}
"""Of files in the package: code, weights with their description, and pages."""

NEVER = ("tests/", "bench/", "studies/", "tutorials/", "docs/", "__pycache__", ".zarr")


def main(folder: Path) -> None:
    """Look at the wheel and the sdist in a folder."""
    source = {str(path.relative_to("src")) for path in Path("src/sthist").rglob("*") if path.is_file()}
    source = {path for path in source if "__pycache__" not in path}
    (wheel,), (sdist,) = folder.glob("sthist-*.whl"), folder.glob("sthist-*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    wrong = [f"{path} is not in the wheel" for path in sorted(source - names)]
    wrong += [f"{path} is not in the sdist" for path in sorted({f"src/{path}" for path in source} - packed)]
    licences = ("LICENSE", "LICENSE-WEIGHTS")
    wrong += [
        f"{name} is not in the wheel" for name in licences if not any(n.endswith(f"licenses/{name}") for n in names)
    ]
    wrong += [f"{name} is not in the sdist" for name in (*licences, "CITATION.cff", "README.md") if name not in packed]
    for where, files in (("wheel", names), ("sdist", {path.removeprefix("src/") for path in packed})):
        inside = {path for path in files if path.startswith("sthist/") and Path(path).suffix}
        wrong += [f"{path} is in the {where}" for path in sorted(inside) if Path(path).suffix not in SUFFIXES]
        wrong += [
            f"{path} is in the {where}" for path in sorted(files) if path.startswith(NEVER) or "__pycache__" in path
        ]
    sizes = {path.name: path.stat().st_size for path in (wheel, sdist)}
    wrong += [f"{name} has {size / 1e6:.1f} MB" for name, size in sizes.items() if size > MOST_BYTES]
    if "](docs/" in metadata or "](CITATION" in metadata:
        wrong.append("the long description links to files beside it")
    if wrong:
        sys.exit("\n".join(wrong))
    print(
        ", ".join(f"{name}: {size / 1e6:.1f} MB" for name, size in sizes.items())
        + f"; {len(source)} files of the package"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
