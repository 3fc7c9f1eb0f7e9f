"""The command line: thin over the verbs."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from spatialdata import SpatialData

PLATFORMS = ("xenium", "cosmx", "merscope", "spatialdata")
REPORTED = [
    "spatialdata",
    "spatialdata-io",
    "anndata",
    "zarr",
    "dask",
    "scanpy",
    "squidpy",
    "numba",
    "torch",
    "diffusers",
    "peft",
    "timm",
    "open_clip_torch",
    "lightning",
    "torchmetrics",
    "scikit-image",
]
OPTIONAL = {
    "imagecodecs": "TIFF compressed with JPEG or JPEG 2000",
    "spatialdata_plot": "more plots of SpatialData",
    "napari_spatialdata": "interactive viewing",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("sthist").setLevel(logging.INFO)
    options = _parser().parse_args(arguments)
    try:
        command: Callable[[argparse.Namespace], None] = options.command
        command(options)
    except (KeyError, ValueError, OSError, RuntimeError) as error:
        # A KeyError prints its message in quotes; the message alone is what helps.
        print(f"sthist: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    from sthist import __version__

    parser = argparse.ArgumentParser("sthist", description="Histology and spatial transcriptomics, linked both ways.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="make a sample and its virtual H&E; nothing is downloaded")
    demo.add_argument("--out", type=Path, default=Path("sthist-demo"), help="folder for the figure and the store")
    demo.add_argument("--size-um", type=float, default=2000.0, help="side of the sample in micrometres")
    demo.set_defaults(command=_demo)
    virtual = commands.add_parser("virtual-he", help="virtual H&E of a section")
    virtual.add_argument("input", type=Path, help="folder of the platform, or a SpatialData store")
    virtual.add_argument("--platform", choices=PLATFORMS, required=True)
    virtual.add_argument("--out", type=Path, required=True, help="SpatialData store to write (.zarr)")
    virtual.add_argument("--model", default="beer-lambert", help="beer-lambert, or the folder of a model")
    virtual.add_argument("--within", type=float, nargs=4, metavar=("X0", "Y0", "X1", "Y1"), help="box in micrometres")
    virtual.add_argument("--mpp", type=float, help="micrometres per pixel of the result")
    virtual.add_argument("--stain-reference", type=Path, help="picture of a real H&E whose colours to take")
    virtual.add_argument("--figure", type=Path, help="also save a figure of stain, transcripts and virtual H&E")
    virtual.add_argument("--overwrite", action="store_true", help="replace an existing virtual H&E")
    virtual.add_argument("--dry-run", action="store_true", help="say what the run takes, and make no image")
    virtual.set_defaults(command=_virtual_he)
    doctor = commands.add_parser("doctor", help="versions, devices, and which optional parts and weights are there")
    doctor.set_defaults(command=_doctor)
    return parser


def _demo(options: argparse.Namespace) -> None:
    import sthist

    start = time.perf_counter()
    options.out.mkdir(parents=True, exist_ok=True)
    sdata = sthist.datasets.toy(size_um=options.size_um)
    store = options.out / "toy.zarr"
    sdata.write(store, overwrite=True)
    sdata = _read_store(store)
    sthist.tl.virtual_he(sdata)
    _use_agg()
    middle, half = options.size_um / 2, min(150.0, options.size_um / 2)
    sthist.pl.virtual_he(sdata, save=options.out / "virtual_he.png")
    box = (middle - half, middle - half, middle + half, middle + half)
    sthist.pl.virtual_he(sdata, within=box, save=options.out / "virtual_he_zoom.png")
    print(f"Done in {time.perf_counter() - start:.0f} s. Look at {options.out}/virtual_he.png and virtual_he_zoom.png;")
    print(f"the sample with its virtual H&E is the SpatialData store {store}.")


def _virtual_he(options: argparse.Namespace) -> None:
    import sthist

    sdata = _read_input(options) if options.dry_run and not options.out.exists() else _open(options)
    reference = None
    if options.stain_reference is not None:
        from sthist.io._images import read_image

        reference = read_image(options.stain_reference, "stain reference").pixels.transpose(1, 2, 0)
    plan = sthist.tl.virtual_he(
        sdata,
        options.model,
        within=options.within,
        mpp=options.mpp,
        stain_reference=reference,
        overwrite=options.overwrite,
        dry_run=options.dry_run,
    )
    if plan is not None:
        print(dataclasses.replace(plan, free_bytes=shutil.disk_usage(options.out.resolve().parent).free))
        return
    if options.figure is not None:
        _use_agg()
        sthist.pl.virtual_he(sdata, within=options.within, save=options.figure)
    print(f"images['virtual_he'] is in {options.out}.")


def _open(options: argparse.Namespace) -> SpatialData:
    """The sample at ``--out``: copied there from the input, whole or not at all, unless an earlier run has done so."""
    source = str(options.input.resolve())
    if options.platform == "spatialdata" and options.out.resolve() == options.input.resolve():
        return _read_input(options)
    if not options.out.exists():
        sdata = _read_input(options)
        sdata.attrs.setdefault("sthist", {})["source"] = source
        partial = options.out.with_name(options.out.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        sdata.write(partial)
        os.rename(partial, options.out)
    sdata = _read_store(options.out)
    made_from = sdata.attrs.get("sthist", {}).get("source")
    if made_from != source:
        msg = f"{options.out} was not made from {source}, but from {made_from or 'something else'}; name another --out."
        raise ValueError(msg)
    return sdata


def _read_input(options: argparse.Namespace) -> SpatialData:
    import sthist

    if options.platform != "spatialdata":
        return getattr(sthist.io, options.platform)(options.input)
    if not any((options.input / name).exists() for name in ("zarr.json", ".zgroup")):
        msg = f"{options.input} is no SpatialData store: it has neither zarr.json nor .zgroup."
        raise FileNotFoundError(msg)
    return _read_store(options.input)


def _read_store(path: Path) -> SpatialData:
    import spatialdata as sd

    return sd.read_zarr(path)


def _use_agg() -> None:
    import matplotlib

    matplotlib.use("agg")


def _doctor(_: argparse.Namespace) -> None:
    from importlib.metadata import PackageNotFoundError, version
    from importlib.util import find_spec

    import sthist

    print(f"sthist {sthist.__version__}, Python {sys.version.split()[0]}")
    for name in REPORTED:
        try:
            print(f"  {name} {version(name)}")
        except PackageNotFoundError:
            print(f"  {name} is MISSING: pip install {name}")
    for module, use in OPTIONAL.items():
        print(f"  optional, {use}: {module} is {'there' if find_spec(module) else 'not there'}")
    import torch

    devices = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    print(f"devices: cpu ({sthist.settings.threads} threads){''.join(f', {device}' for device in devices)}")
    print(f"'auto' is {sthist.settings.torch_device()}")
    print(f"cache folder: {sthist.settings.cache_dir}; scratch folder: {sthist.settings.scratch_dir}")
    print("weights: the model 'beer-lambert' is built in and needs none; no other is part of this version")
