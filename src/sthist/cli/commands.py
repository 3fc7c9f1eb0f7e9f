"""The command line: thin over the verbs."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from sthist._sample.platforms import find_platform
from sthist._settings import logger
from sthist.cli import flags, inputs
from sthist.cli.batch import BUSY, Batch, parse_value, read_tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

COMPLETION = """\
Completion in your shell: pip install 'sthist[completion]', then, once,
  bash: sthist completion bash > ~/.local/share/bash-completion/completions/sthist
  zsh:  sthist completion zsh > DIR/_sthist, DIR a folder of $fpath
  fish: sthist completion fish > ~/.config/fish/completions/sthist.fish
and open a new shell."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    if arguments is None and not sys.warnoptions:  # from a shell: warnings are for those who program with a library
        warnings.simplefilter("ignore")
    options = _parser().parse_args(arguments)
    try:
        flags.apply(options)
        command: Callable[[argparse.Namespace], int | None] = options.command
        return command(options) or 0
    except BrokenPipeError:  # whoever read what is printed has read enough, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyError, ValueError, OSError, RuntimeError) as error:
        # A KeyError prints its message in quotes; the message alone is what helps.
        print(f"sthist: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    from sthist import __version__

    everywhere = flags.everywhere()
    parser = argparse.ArgumentParser(
        "sthist",
        description="Histology and spatial transcriptomics, linked both ways.",
        epilog=COMPLETION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[everywhere],
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, help: str, run: Callable[[argparse.Namespace], int | None]) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.", parents=[everywhere])
        made.set_defaults(command=run)
        return made

    demo = command("demo", "make a sample and its virtual H&E; nothing is downloaded", _demo)
    flags.add(demo, "--out", default=Path("sthist-demo"), help="folder for the figure and the store")
    demo.add_argument("--size-um", type=float, default=2000.0, help="side of the sample in micrometres")
    virtual = command("virtual-he", "virtual H&E of a section", _virtual_he)
    virtual.add_argument("input", type=Path, metavar="FOLDER", help="folder of the platform, or a SpatialData store")
    flags.add(
        virtual,
        "--platform",
        "--out",
        help=("SpatialData store to write (.zarr); by default the one that is given, or FOLDER.zarr in this folder"),
    )
    virtual.add_argument("--model", default="beer-lambert", help="beer-lambert, st2he-small, or the folder of a model")
    virtual.add_argument("--tissue", help="which tissue it is, for a model that was trained on several")
    flags.add(virtual, "--device", "--seed", "--within", "--overwrite")
    virtual.add_argument("--mpp", type=float, help="micrometres per pixel of the result")
    virtual.add_argument("--stain-reference", type=Path, help="picture of a real H&E whose colours to take")
    virtual.add_argument("--figure", type=Path, help="also save a figure of stain, transcripts and virtual H&E")
    virtual.add_argument("--dry-run", action="store_true", help="say what the run takes, and make no image")
    run = command("run", "one verb on many samples; what is done is not done again", _run)
    run.add_argument("verb", metavar="VERB", help="such as tl.virtual_he or pp.tissue")
    run.add_argument(
        "samples", type=Path, help="csv: sample, path, platform, patient, batch, and arguments of the verb"
    )
    flags.add(run, "--out", help="folder for the stores; by default SpatialData stores get the result themselves")
    run.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="argument of the verb, for all samples"
    )
    run.add_argument(
        "--record", action="append", default=[], metavar="COLUMN", help="further column to keep with the sample"
    )
    flags.add(run, "--platform", "--device", "--seed", "--within", "--overwrite", "--jobs", "--dask")
    view = command("view", "walk through a slide in the browser", _view)
    view.add_argument("store", type=Path, help="SpatialData store (.zarr)")
    view.add_argument("--color", help="column, gene or score (KEY:COLUMN of obsm) that cells, spots or tiles show")
    view.add_argument("--table", help="table that has it")
    view.add_argument("--layer", help="layer with the expression of a gene")
    view.add_argument("--genes", nargs="+", metavar="GENE", help="genes whose molecules are shown as dots")
    view.add_argument("--images", nargs="+", metavar="KEY", help="images that are shown; all by default")
    flags.add(view, "--within")
    view.add_argument("--port", type=int, help="port at which the page is served; by default the first free from 8765")
    view.add_argument("--no-browser", action="store_true", help="print the address, and open no browser")
    command(
        "doctor",
        "versions, devices, encoders, models and extras, and what to type for what is missing",
        _doctor,
    )
    completion = command("completion", "print what makes a shell complete this command", _completion)
    completion.add_argument("shell", choices=("bash", "zsh", "fish", "tcsh"), help="the shell")
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

    platform = options.platform or find_platform(options.input)
    out = options.out or (options.input if platform == "spatialdata" else Path(f"{options.input.resolve().name}.zarr"))
    if options.platform is None:
        logger.info("%s is of %s.", options.input, platform)
    if options.dry_run and not out.exists():
        sdata = inputs.read_input(options.input, platform)
    else:
        sdata = inputs.open_sample(options.input, platform, out)
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
        seed=options.seed,
        mpp=options.mpp,
        stain_reference=reference,
        overwrite=options.overwrite,
        dry_run=options.dry_run,
    )
    if plan is not None:
        print(dataclasses.replace(plan, free_bytes=shutil.disk_usage(out.resolve().parent).free))
        return
    if options.figure is not None:
        _use_agg()
        sthist.pl.virtual_he(sdata, within=options.within, save=options.figure)
    print(f"images['virtual_he'] is in {out}.")


def _run(options: argparse.Namespace) -> int:
    arguments = {}
    for text in options.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set takes NAME=VALUE, not {text!r}.")
        arguments[name] = parse_value(value)
    given = {"device": options.device, "seed": options.seed, "within": options.within}
    arguments = {name: value for name, value in given.items() if value is not None} | arguments
    tasks = read_tasks(options.samples, options.verb, options.out, arguments, options.record, options.platform)
    folder = options.out or options.samples.with_suffix(".run")
    batch = Batch(tasks, folder, overwrite=options.overwrite)
    if options.dask is None:
        n_left = batch.run(options.jobs)
    else:
        from sthist.cli.cluster import workers_of

        with workers_of(options.dask, folder, options.jobs) as workers:
            n_left = batch.run(place=workers)
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
    from sthist.cli.doctor import report

    for line in report():
        print(line)


def _completion(options: argparse.Namespace) -> None:
    try:
        import shtab
    except ImportError:
        raise ValueError("Completion needs the package shtab: pip install 'sthist[completion]'.") from None
    print(shtab.complete(_parser(), options.shell))
