"""Kills of a writing verb at each step that changes the store, and what must hold of the store afterwards.

A copy of this process is forked, runs the verb, and is ended by SIGKILL just before one of the steps: renaming,
replacing, linking, exchanging or deleting a file or folder of the store (working folders, which no reader sees, aside).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import numba
import spatialdata as sd
from writing import files_under

from sthist._store import commit, store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from writing import Verb

numba.config.THREADING_LAYER = "workqueue"  # the others end a process that is forked
WORK = ".sthist"
KINDS = ("images", "labels", "points", "shapes", "tables")
ALIVE, DONE = 3, 0


class SameTime(store.datetime.datetime):
    """So that two runs give the same bytes."""

    @classmethod
    def now(cls, tz=None):
        return cls(2026, 1, 1, tzinfo=tz)


def run(verb: Verb, path: Path, overwrite: bool) -> None:
    """The call that is stopped, and later repeated."""
    with warnings.catch_warnings(), dask.config.set(scheduler="synchronous"):  # threads do not outlive a fork
        warnings.simplefilter("ignore")
        verb.call(sd.read_zarr(path), None, overwrite)


def killed_at(verb: Verb, path: Path, overwrite: bool, step: int, *, exchange: bool = True) -> bool:
    """Run a verb in a process of its own, which ends just before a step; whether there was such a step."""
    child = os.fork()
    if child == 0:
        try:
            _die_at(path, step)
            if not exchange:
                commit.exchange = lambda *_: False
            run(verb, path, overwrite)
            os._exit(DONE)
        except BaseException:  # noqa: BLE001  the parent has to know, whatever it is
            import traceback

            traceback.print_exc()
            os._exit(ALIVE)
    _, status = os.waitpid(child, 0)
    died = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert died or (os.WIFEXITED(status) and os.WEXITSTATUS(status) == DONE), "the verb failed by itself"
    return died


def _die_at(path: Path, step: int) -> None:
    """Count the steps that change a store, and die before one."""
    done = [0]

    def is_step(target: Any) -> bool:
        place = Path(target).absolute()
        if not place.is_relative_to(path):
            return False
        parts = place.relative_to(path).parts
        return parts[:2] == (WORK, commit.SWITCH) or parts[:1] != (WORK,)

    def before(call: Callable[..., Any], at: int) -> Callable[..., Any]:
        def stepping(*args: Any, **kwargs: Any) -> Any:
            if is_step(args[at]):
                if done[0] == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                done[0] += 1
            return call(*args, **kwargs)

        return stepping

    for module, name, at in (
        (os, "rename", 1),
        (os, "replace", 1),
        (os, "symlink", 1),
        (commit, "exchange", 1),
        (shutil, "rmtree", 0),
    ):
        setattr(module, name, before(getattr(module, name), at))


def contents(path: Path) -> dict[str, Any]:
    """What a reader of a store sees: each element by its bytes, and the attributes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sdata = sd.read_zarr(path)
    places = [f"{kind}/{name}" for kind in KINDS for name in getattr(sdata, kind)]
    seen: dict[str, Any] = {place: files_under((path / place).resolve(), follow=True) for place in places}
    for place in places:
        metadata = json.loads((path / place / "zarr.json").read_text())
        metadata["attributes"].pop("sthist_canvas", None)  # is another one in each folder
        seen[place]["zarr.json"] = json.dumps(metadata, sort_keys=True)
    return seen | {"attributes": json.loads(json.dumps(dict(sdata.attrs), sort_keys=True))}


def unlisted(path: Path) -> set[str]:
    """Elements that the consolidated metadata list and the disk has not, or the other way round."""
    listed = json.loads((path / "zarr.json").read_text()).get("consolidated_metadata")
    there = {
        f"{file.parent.parent.name}/{file.parent.name}" for kind in KINDS for file in path.glob(f"{kind}/*/zarr.json")
    }
    return set() if listed is None else there ^ {place for place in listed["metadata"] if place.count("/") == 1}


def unconsolidate(path: Path) -> None:
    """Take a store's list of elements away."""
    root = json.loads((path / "zarr.json").read_text())
    root.pop("consolidated_metadata")
    (path / "zarr.json").write_text(json.dumps(root))


def kills(
    verb: Verb, start: Path, folder: Path, *, overwrite: bool, exchange: bool = True, every: int = 1
) -> Iterator[tuple[int, list[str]]]:
    """Kill a verb before each of its steps; yields the step and what did not hold.

    ``start`` is the store that it is called on, which stays; with ``overwrite``, its result is there. Where folders are
    not exchanged, elements that are replaced may be missing until the next call.
    """
    before = contents(start)
    whole = Path(shutil.copytree(start, folder / "whole.zarr", symlinks=True))
    run(verb, whole, overwrite)
    complete, step, died = contents(whole), 0, True
    while died:
        path = Path(shutil.copytree(start, folder / "killed.zarr", symlinks=True))
        died = killed_at(verb, path, overwrite, step, exchange=exchange)
        yield step, list(_wrong(verb, path, before, complete, overwrite, exchange, died))
        shutil.rmtree(path)
        step += every
    shutil.rmtree(whole)


def _wrong(
    verb: Verb, path: Path, before: dict, complete: dict, overwrite: bool, exchange: bool, died: bool
) -> Iterator[str]:
    """What does not hold of a store after a kill."""
    found = contents(path)
    if found not in (before, complete) and (exchange or not overwrite or not _is_gap(found, before)):
        yield f"neither as before nor complete: {_differing(found, before)}"
    if not died:
        if found != complete:
            yield "not complete at the end of a run that nothing stopped"
        return
    try:
        run(verb, path, overwrite)
    except ValueError as error:
        if "Pass overwrite=True" not in str(error) or found != complete:
            yield f"the same call fails: {error}"
    with store.writing(sd.read_zarr(path)):
        pass  # the next verb tidies up where this one was not needed
    again = contents(path)
    if again != complete:
        yield f"not complete after the same call: {_differing(again, complete)}"
    if unlisted(path):
        yield f"metadata and disk differ: {unlisted(path)}"
    left = {each.name for each in (path / WORK).iterdir()} - {commit.LOCK}
    if left:
        yield f"left under {WORK}: {left}"


def _differing(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Elements and files that differ."""
    differing = []
    for place in sorted({*found, *expected}):
        one, other = found.get(place, {}), expected.get(place, {})
        differing += [f"{place}/{name}" for name in sorted({*one, *other}) if one.get(name) != other.get(name)]
    return differing[:5]


def _is_gap(found: dict[str, Any], before: dict[str, Any]) -> bool:
    return all(before.get(place) == value for place, value in found.items())
