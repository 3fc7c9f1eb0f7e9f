"""A run that was stopped, in a process of its own, and all that must hold of the store that it leaves behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import shapely
import spatialdata as sd
import victim
from spatialdata.models import ShapesModel
from spatialdata.transformations import Identity
from store_state import WORK, Contents, Progress, contents, files, identity, is_consolidated, unlisted, verdict

import sthist
from sthist.systems.virtual_he.models.beer_lambert import BeerLambert, BeerLambertConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OTHER_MPP = 0.8


@dataclass
class Row:
    """A case: how often it was tried, where it was stopped, and what was found."""

    case: str
    n: int = 0
    stopped: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def check(self, holds: object, what: str) -> None:
        """Keep what does not hold."""
        if not holds:
            self.violations.append(what)

    def __str__(self) -> str:
        stopped, found = (", ".join(f"{n} {what}" for what, n in c.most_common()) for c in (self.stopped, self.found))
        if len(self.stopped) == self.n > 5:
            stopped = (
                f"each time before another step, "
                f"{', '.join(sorted({step.split(', ')[1].split()[0] for step in self.stopped}))}"
            )
        lines = [f"{self.case}: {self.n}; stopped: {stopped or '-'}; found: {found or '-'}"]
        return "\n".join(
            lines + [f"    VIOLATION {count} x {what}" for what, count in Counter(self.violations).items()]
        )


@dataclass
class Setting:
    """A store to start from, and what a run that nothing stops makes of it."""

    name: str
    store: Path
    overwrite: bool
    before: Contents
    complete: Contents
    files: set[str]
    progress: Progress

    @property
    def options(self) -> tuple[str, ...]:
        """Of ``victim.py``."""
        return ("--overwrite",) if self.overwrite else ()

    def copy(self, folder: Path, name: str) -> Path:
        """The store anew, under a name of its own: nothing is remembered of another one."""
        shutil.copytree(self.store, folder / f"{name}.zarr", symlinks=True)
        return folder / f"{name}.zarr"

    def verdict(self, store: Path) -> str:
        """What a store holds after a run was stopped."""
        try:
            return verdict(contents(store), self.before, self.complete)
        except Exception as error:  # noqa: BLE001  whatever it is: the store does not open
            return f"VIOLATION: read_zarr fails: {type(error).__name__}: {error}"


class Victim:
    """A run in a process of its own.

    Parameters
    ----------
    store
        Where it runs.
    options
        Of ``victim.py``.
    """

    def __init__(self, store: Path, *options: str) -> None:
        command = [sys.executable, victim.__file__, str(store), *options]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def go(self) -> Victim:
        """Begin, as soon as it is ready."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        while (line := self.process.stdout.readline().strip()) != "ready":
            if not line and self.process.poll() is not None:
                msg = "The run ended before it began."
                raise RuntimeError(msg)
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self

    def kill(self) -> bool:
        """SIGKILL; whether that came before its end."""
        self.process.kill()
        return not self.process.communicate()[0]

    def end(self) -> dict[str, Any] | None:
        """What it says at its end; None if it was killed."""
        lines = self.process.communicate()[0].splitlines()
        return None if self.process.returncode < 0 else json.loads(lines[-1])


def make_settings(folder: Path, size_um: float, *, few: bool = False) -> list[Setting]:
    """The stores to start from: consolidated or not, without or with an image of that name.

    Or the first and last of these.
    """
    fresh, taken = folder / "fresh.zarr", folder / "taken.zarr"
    sthist.datasets.toy(size_um=size_um).write(fresh)
    shutil.copytree(fresh, taken)
    dark = BeerLambert(BeerLambertConfig(haematoxylin=(0.5, 3.0)))
    sthist.tl.virtual_he(sd.read_zarr(taken), dark, mpp=OTHER_MPP)
    settings = []
    for store in (fresh, taken):
        bare = store.with_name(f"{store.stem}-unconsolidated.zarr")
        shutil.copytree(store, bare)
        root = json.loads((bare / "zarr.json").read_text())
        del root["consolidated_metadata"]
        (bare / "zarr.json").write_text(json.dumps(root))
        for start in (bare if store is taken else store,) if few else (store, bare):
            name = (
                f"{'consolidated' if start is store else 'unconsolidated'}, "
                f"{'overwrite' if store is taken else 'fresh'}"
            )
            settings.append(_setting(name, start, overwrite=store is taken))
    assert len({s.complete.elements[f"images/{victim.KEY}"] for s in settings}) == 1, "uninterrupted runs differ"
    return settings


def _setting(name: str, store: Path, *, overwrite: bool) -> Setting:
    """Let it run to its end: what it makes."""
    whole = store.with_name(f"whole-{store.name}")
    shutil.copytree(store, whole)
    victim.run(whole, overwrite=overwrite)
    image = whole / "images" / victim.KEY
    shape = json.loads((image / "s0" / "zarr.json").read_text())["shape"]
    n_blocks = -(-shape[1] // victim.BLOCK_PX) * -(-shape[2] // victim.BLOCK_PX)
    n_files = sum(path.is_file() for path in image.rglob("*"))
    progress = Progress(n_blocks, n_files, identity(store / "images" / victim.KEY))
    return Setting(name, store, overwrite, contents(store), contents(whole), files(whole), progress)


def add_by_sthist(row: Row, setting: Setting, store: Path) -> None:
    """A verb that writes an element of its own."""
    sthist.pp.tissue(sd.read_zarr(store), key_added="outline")


def add_by_spatialdata(row: Row, setting: Setting, store: Path) -> None:
    """SpatialData writes an element without asking us."""
    sdata = sd.read_zarr(store)
    square = gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 10, 10)])
    sdata["square"] = ShapesModel.parse(square, transformations={"um": Identity()})
    sdata.write_element("square")


def run_again(row: Row, setting: Setting, store: Path) -> None:
    """The same call again, as its user would: not where the result is there already, unless it is to be replaced."""
    there = f"images/{victim.KEY}" in contents(store).elements
    try:
        victim.run(store, overwrite=setting.overwrite)
    except ValueError as error:
        row.check(there and not setting.overwrite and "exists" in str(error), f"the same call fails: {error}")


FOLLOW_UPS: tuple[Callable[[Row, Setting, Path], None], ...] = (run_again, add_by_sthist, add_by_spatialdata)


def examine(row: Row, setting: Setting, store: Path, stopped: str, order: int, *, gap: bool = False) -> None:
    """All that must hold of a store after a run in it was stopped; the store is deleted.

    Parameters
    ----------
    row
        Where the findings go.
    setting
        Of the run.
    store
        In which it ran.
    stopped
        In which phase, or before which step.
    order
        Which of the three things that are done next comes first.
    gap
        The old image may be missing: two folders are not exchanged in one step here.
    """
    row.n += 1
    row.stopped[stopped] += 1
    found = setting.verdict(store)
    if (
        gap
        and "elements of neither" in found
        and contents(store).without(victim.KEY).elements == setting.before.without(victim.KEY).elements
    ):
        found = "the image missing, all else as before"
    row.found[found] += 1
    row.check("VIOLATION" not in found, f"({stopped}) {found.removeprefix('VIOLATION: ')}")
    for step in (*FOLLOW_UPS[order % 3 :], *FOLLOW_UPS[: order % 3]):
        try:
            step(row, setting, store)
            contents(store)
        except Exception as error:  # noqa: BLE001  whatever it is: it must not happen
            row.violations.append(f"({stopped}) then {step.__name__}: {type(error).__name__}: {error}")
        differ = unlisted(store)
        row.check(not differ, f"({stopped}) then {step.__name__}: metadata and disk differ: {sorted(differ)[:3]}")
    check_end(row, setting, store, stopped)
    shutil.rmtree(store)


def check_end(row: Row, setting: Setting, store: Path, stopped: str) -> None:
    """The result is that of a run that nothing stopped, and nothing else is left."""
    try:
        found = contents(store).without("outline", "square")
    except Exception as error:  # noqa: BLE001  whatever it is: the store does not open
        row.violations.append(f"({stopped}) at the end read_zarr fails: {type(error).__name__}: {error}")
        return
    row.check(found.elements == setting.complete.elements, f"({stopped}) the resumed elements differ")
    row.check(found.attributes == setting.complete.attributes, f"({stopped}) the resumed attributes differ")
    row.check(found.warnings <= setting.complete.warnings, f"({stopped}) at the end read_zarr warns")
    row.check(
        is_consolidated(store) == is_consolidated(setting.store), f"({stopped}) consolidated metadata came or went"
    )
    extra = {f for f in files(store) if not f.startswith(("shapes/outline/", "shapes/square/"))} ^ setting.files
    row.check(not extra, f"({stopped}) files left or missing, such as {min(extra, default='').split('/')[-1][-8:]}")
    left = sorted(path.name for path in (store / WORK).iterdir() if path.name != ".lock")
    row.check(not left, f"({stopped}) left under {WORK}: {left}")
