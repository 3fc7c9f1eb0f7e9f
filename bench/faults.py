"""What a whole-slide run leaves behind when it is stopped.

It is killed, on a full disk, on a read-only store, or on damaged input.

Run ``python bench/faults.py [--kills 20] [--size-um 1400] [--json FILE] [--folder DIR] [--only CASE ...]``. The run is
``tl.virtual_he`` on a toy section on zarr, in blocks of 512 pixels; stores are with and without consolidated metadata,
and without or with an image of that name already (``overwrite=True``; made with other settings, at another resolution).
A process of its own is killed (SIGKILL) at random moments of the whole length of a run, and then before each single
step of publishing that changes the store. After each kill ``read_zarr`` must give the elements and attributes of
before, or the complete result (``.sthist/`` aside), and no new warnings; then, in turn, a verb of sthist and
``SpatialData.write_element`` add an element each, after which the store opens and its consolidated metadata list what
is there; and the same call again gives the image of an uninterrupted run, bit by bit, and leaves nothing behind. Full
disks are small tmpfs, read-only stores are bind mounts, both in a mount namespace of this process: as root, or where
users may make namespaces (``unshare -Urm``); elsewhere these cases are not run, and the table says so. Where folders
cannot be exchanged in one step, which is pretended, the old image may be missing for a moment, and must be there again
after the next call. The exit status says whether all held.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import spatialdata as sd
import victim
from stopped import Row, Setting, Victim, examine, make_settings
from store_state import WORK

import sthist

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

IN_NAMESPACE = "STHIST_BENCH_NAMESPACE"
GROUPS = ("random", "aimed", "chunk", "writers", "disk", "disk-steps", "read-only")


def length(setting: Setting, folder: Path) -> float:
    """Seconds of a run that nothing stops."""
    store = setting.copy(folder, "length")
    end = Victim(store, "--warm-up", *setting.options).go().end()
    assert end is not None
    shutil.rmtree(store)
    return float(end["seconds"])


def random_kills(row: Row, setting: Setting, folder: Path, n: int, rng: random.Random) -> None:
    """SIGKILL at moments that are spread evenly over the length of a run; one that ended sooner is started again."""
    seconds = sorted(length(setting, folder) for _ in range(3))
    row.facts |= {"seconds_of_a_run": [round(s, 2) for s in seconds], "ended_before_they_were_killed": 0}

    def get_ready(number: int) -> tuple[Path, Victim]:
        store = setting.copy(folder, f"random-{setting.store.stem}-{number}")
        return store, Victim(store, "--warm-up", *setting.options)

    started, following = 1, get_ready(0)
    while row.n < n:
        store, run = following
        run.go()
        time.sleep(rng.uniform(0, statistics.median(seconds)))
        in_time = run.kill()
        if row.n + in_time < n:  # it gets ready while this one is examined
            following = get_ready(started)
            started += 1
        if in_time:
            examine(row, setting, store, setting.progress.of(store), row.n)
        else:
            row.facts["ended_before_they_were_killed"] += 1
            shutil.rmtree(store)


def aimed(
    row: Row, setting: Setting, folder: Path, how: str, examined: Callable[..., None], more: tuple[str, ...] = ()
) -> None:
    """Stop a run before each step of publishing; its blocks and pyramid are done already."""
    options = (*setting.options, *more)
    ready = setting.copy(folder, f"{how}-{setting.store.stem}")
    Victim(ready, "--die-at", "0", *options).go().end()
    row.check(setting.progress.of(ready) == "publishing", "the first step of publishing is not where it should be")
    counted = folder / f"counted-{ready.name}"
    shutil.copytree(ready, counted, symlinks=True)
    end = Victim(counted, *options).go().end()
    assert end is not None
    shutil.rmtree(counted)
    for number, step in enumerate(end["steps"]):
        store = folder / f"{number}-{ready.name}"
        shutil.copytree(ready, store, symlinks=True)
        examined(row, setting, store, f"before step {number}, {step}", number, options)
    shutil.rmtree(ready)


def killed_at_step(
    row: Row, setting: Setting, store: Path, step: str, number: int, options: tuple[str, ...], *, gap: bool = False
) -> None:
    """SIGKILL just before a step."""
    end = Victim(store, "--die-at", str(number), *options).go().end()
    row.check(end is None, f"({step}) was not killed")
    examine(row, setting, store, step, number, gap=gap)


@contextmanager
def tmpfs(folder: Path, n_bytes: int) -> Iterator[Path]:
    """A small disk."""
    folder.mkdir(exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", folder)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def read_only(store: Path, folder: Path) -> Iterator[Path]:
    """A view of a store that cannot be written to."""
    folder.mkdir()
    _mount("--bind", store, folder)
    _mount("-o", "remount,bind,ro", folder)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def _mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True)


def check_full(row: Row, failed: dict[str, Any] | None, disk: Path, stopped: str) -> None:
    """The error of a full disk: which one, and what to do."""
    if failed is None:
        row.violations.append(f"({stopped}) no error on a full disk")
        return
    row.check(failed["errno"] == errno.ENOSPC, f"({stopped}) no ENOSPC but {failed['type']}: {failed['message'][:200]}")
    said = failed["message"]
    row.check(str(disk) in said and "Make room" in said, f"({stopped}) an unclear message: {said[:200]}")


def too_small_from_the_start(row: Row, settings: tuple[Setting, ...], folder: Path) -> None:
    """Refused before the first block; the same call completes when the disk is larger."""
    for setting in settings:
        size = _size(setting.store)
        with tmpfs(folder / "disk", int(1.03 * size) + 2**20) as disk:
            store = setting.copy(disk, "small")
            try:
                victim.run(store, overwrite=setting.overwrite)
                failed = None
            except OSError as error:
                failed = {"type": type(error).__name__, "errno": error.errno, "message": str(error)}
            check_full(row, failed, disk, "before the start")
            stopped = setting.progress.of(store)
            row.check(stopped in {"nothing built yet", "no block"}, f"refused too late: {stopped}")
            _mount("-o", f"remount,size={4 * size}", disk)
            examine(row, setting, store, stopped, 0)


def fills_in_the_middle(row: Row, settings: tuple[Setting, ...], folder: Path) -> None:
    """Another program takes what is left when some blocks are done: one, and half of them."""
    for setting, part in zip(settings, (0, 0.5), strict=True):
        with tmpfs(folder / "disk", 4 * _size(setting.store)) as disk:
            store = setting.copy(disk, "filling")
            run = Victim(store, *setting.options).go()
            wait_for_blocks(run, store, max(1, int(part * setting.progress.n_blocks)))
            run.process.send_signal(signal.SIGSTOP)  # so that it is not done meanwhile
            victim.fill_disk(disk)
            run.process.send_signal(signal.SIGCONT)
            end = run.end()
            stopped = setting.progress.of(store)
            check_full(row, end and end["failed"], disk, stopped)
            _mount("-o", f"remount,size={8 * _size(setting.store)}", disk)
            examine(row, setting, store, stopped, 0)


def full_at_step(row: Row, setting: Setting, store: Path, step: str, number: int, options: tuple[str, ...]) -> None:
    """The disk fills up just before a step."""
    end = Victim(store, "--fill-at", str(number), *options).go().end()
    (store.parent / "ballast").unlink()
    if end and end["failed"]:
        check_full(row, end["failed"], store.parent, step)
    else:
        row.found["went on without more room"] += 1
        row.check(setting.verdict(store) == "complete", f"({step}) went on, but is not complete")
    examine(row, setting, store, step, number)


def at_each_step_on_tmpfs(row: Row, setting: Setting, folder: Path) -> None:
    """Full at each step of publishing."""
    with tmpfs(folder / "disk", 12 * _size(setting.store)) as disk:
        aimed(row, setting, disk, "full", full_at_step)


def wait_for_blocks(run: Victim, store: Path, n_done: int) -> None:
    """Until a run has done so many blocks."""
    done = store / WORK / victim.KEY / "done"
    while not done.exists() or len(list(done.iterdir())) < n_done:
        if run.process.poll() is not None:
            msg = "The run ended before it could be stopped."
            raise RuntimeError(msg)
        time.sleep(0.002)


def refused(row: Row, setting: Setting, store: Path, kind: type[Exception], says: str) -> None:
    """Both verbs are refused, at once and in plain words."""
    for call in (
        partial(victim.run, store, overwrite=setting.overwrite),
        partial(sthist.pp.tissue, sd.read_zarr(store), key_added="outline"),
    ):
        try:
            call()
        except kind as error:
            row.check(says in str(error), f"an unclear message: {error}")
        except Exception as error:  # noqa: BLE001  any other one
            row.violations.append(f"no {kind.__name__} but {type(error).__name__}: {error}")
        else:
            row.violations.append(f"no {kind.__name__}")


def read_only_store(row: Row, setting: Setting, folder: Path) -> None:
    """Refused, and nothing changes, not even under ``.sthist/``."""
    store = setting.copy(folder, "locked")
    before = _stat(store)
    with read_only(store, folder / "view.zarr") as view:
        refused(row, setting, view, PermissionError, "is read-only: nothing was written")
        row.found[found := setting.verdict(view)] += 1
    row.n += 1
    row.stopped["read-only mount"] += 1
    row.check(found == "before" and _stat(store) == before, f"a read-only store changed: {found}")
    shutil.rmtree(store)


def no_permission(row: Row, setting: Setting, folder: Path) -> None:
    """The same where the permissions of the folders forbid it."""
    store = setting.copy(folder, "forbidden")
    folders = [store, *(path for path in store.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
    before = _stat(store)
    refused(row, setting, store, PermissionError, "is read-only: nothing was written")
    row.n += 1
    row.stopped["no permission to write"] += 1
    row.found[found := setting.verdict(store)] += 1
    row.check(found == "before" and _stat(store) == before, f"a store without permission changed: {found}")
    for path in folders:
        path.chmod(0o755)
    shutil.rmtree(store)


def truncated_chunk(row: Row, setting: Setting, folder: Path) -> None:
    """A chunk of the nuclear stain is cut short, or empty: the error names it.

    With it restored, the same call completes.
    """
    for part in (0.5, 0.0):
        store = setting.copy(folder, f"truncated-{part:g}")
        level = store / "images" / "morphology_focus" / "s0" / "c"
        chunks = sorted(path for path in level.rglob("*") if path.is_file())
        chunk = chunks[len(chunks) // 2]
        whole = chunk.read_bytes()
        chunk.write_bytes(whole[: int(part * len(whole))])
        try:
            victim.run(store, overwrite=setting.overwrite)
            row.violations.append("no error on a truncated chunk")
        except OSError as error:
            row.check(str(chunk) in str(error), f"the error does not name the chunk: {error}")
        chunk.write_bytes(whole)
        examine(row, setting, store, setting.progress.of(store), 0)


def two_writers(row: Row, setting: Setting, folder: Path) -> None:
    """While a process writes, others are refused; it goes on, and after it the store is free."""
    store = setting.copy(folder, "shared")
    run = Victim(store, *setting.options).go()
    wait_for_blocks(run, store, 1)
    run.process.send_signal(signal.SIGSTOP)
    refused(row, setting, store, RuntimeError, "Another process is writing to")
    run.process.send_signal(signal.SIGCONT)
    end = run.end()
    row.check(end is not None and end["failed"] is None, f"the first writer was disturbed: {end}")
    row.check(setting.verdict(store) == "complete", "the first writer's result is not complete")
    examine(row, setting, store, "second writer refused", 1)


def _size(store: Path) -> int:
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in store.rglob("*") if path.is_file())


def _stat(store: Path) -> dict[str, tuple[int, int, int]]:
    stats = {str(path): path.stat() for path in (store, *store.rglob("*"))}
    return {path: (stat.st_mode, stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


def why_no_mounts(folder: Path) -> str | None:
    """Why small disks cannot be made here; None where they can."""
    try:
        with tmpfs(folder / "try", 2**20):
            return None
    except FileNotFoundError as error:
        return str(error)
    except subprocess.CalledProcessError as error:
        return str(error.stderr.decode().partition("\n")[0])


def why_permissions_do_not_hold(folder: Path) -> str | None:
    """Why folders cannot be closed to this process; None where they can."""
    closed = folder / "closed"
    closed.mkdir(0o555)
    return "root writes whatever the permissions say" if os.access(closed, os.W_OK) else None


def enter_namespace() -> None:
    """Start again where mounts are this process's own, if the system lets us."""
    if IN_NAMESPACE in os.environ or shutil.which("unshare") is None:
        return
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode == 0:
        sys.stdout.flush()
        os.environ[IN_NAMESPACE] = "1"
        os.execvp(unshare[0], [*unshare, sys.executable, *sys.argv])


def all_cases(
    settings: list[Setting], folder: Path, n_kills: int, seed: int
) -> Iterator[tuple[str, str, Callable[[Row], Any]]]:
    """(group, name, what to do) of each case."""
    rng = random.Random(seed)
    first, last = settings[0], settings[-1]
    for setting in settings:
        do = partial(random_kills, setting=setting, folder=folder, n=n_kills, rng=rng)
        yield "random", f"killed at a random moment ({setting.name})", do
    steps = partial(aimed, folder=folder, how="killed", examined=killed_at_step)
    for setting in settings:
        yield "aimed", f"killed at each step of publishing ({setting.name})", partial(steps, setting=setting)
    steps = partial(
        aimed, folder=folder, how="moved", examined=partial(killed_at_step, gap=True), more=("--no-exchange",)
    )
    for setting in settings:
        if setting.overwrite:
            name = f"killed at each step of publishing, without exchange ({setting.name})"
            yield "aimed", name, partial(steps, setting=setting)
    yield "chunk", "a truncated chunk of the nuclear stain", partial(truncated_chunk, setting=first, folder=folder)
    yield "writers", "two writers", partial(two_writers, setting=first, folder=folder)
    reason = why_no_mounts(folder)
    small = partial(too_small_from_the_start, settings=(first, last), folder=folder)
    yield "disk", "too small a disk", unless(reason, small)
    filling = partial(fills_in_the_middle, settings=(first, last), folder=folder)
    yield "disk", "full disk in the middle", unless(reason, filling)
    for setting in settings:
        do = partial(at_each_step_on_tmpfs, setting=setting, folder=folder)
        yield "disk-steps", f"full disk at each step of publishing ({setting.name})", unless(reason, do)
    yield "read-only", "a read-only store", unless(reason, partial(read_only_store, setting=first, folder=folder))
    do = partial(no_permission, setting=first, folder=folder)
    yield "read-only", "a store without permission to write", unless(why_permissions_do_not_hold(folder), do)


def unless(reason: str | None, do: Callable[[Row], Any]) -> Callable[[Row], Any]:
    """What to do, or to say why it is not done."""

    def say_so(row: Row) -> None:
        row.found[f"not run: {reason}"] += 1

    return do if reason is None else say_so


def kept(rows: list[Row], settings: list[Setting], arguments: argparse.Namespace, chosen: list[str]) -> dict[str, Any]:
    """The findings, with what made them."""
    system = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"
    return {
        "command": " ".join(["python bench/faults.py", *chosen]),
        "machine": f"{system}, Python {platform.python_version()}",
        "size_um": arguments.size_um,
        "blocks": settings[0].progress.n_blocks,
        "kills": arguments.kills,
        "seed": arguments.seed,
        "cases": [
            {"case": row.case, "n": row.n}
            | row.facts
            | {"stopped": dict(row.stopped.most_common()), "found": dict(row.found.most_common())}
            | {"violations": row.violations}
            for row in rows
        ],
        "violations": sum(len(row.violations) for row in rows),
    }


def parse() -> tuple[argparse.Namespace, list[str]]:
    """The arguments, and those of them that others need to do the same again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="at random moments, for each kind of store")
    parser.add_argument("--size-um", type=float, default=1400.0, help="side of the toy section")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS)
    again = argparse.ArgumentParser(add_help=False)
    again.add_argument("--json", type=Path)
    again.add_argument("--folder", type=Path)
    parser.add_argument("--folder", type=Path, help="where the stores are made (a scratch folder)")
    parser.add_argument("--json", type=Path, help="where the findings are kept")
    return parser.parse_args(), again.parse_known_args()[1]


def main() -> None:
    """Make the stores, go through the cases, print, and keep the findings where asked to."""
    arguments, chosen = parse()
    victim.prepare()
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="faults-") as name:
        folder = Path(name)
        sthist.settings.scratch_dir = folder / "scratch"
        few = not {"random", "aimed", "disk-steps"} & set(arguments.only)
        settings = make_settings(folder, arguments.size_um, few=few)
        for group, case, do in all_cases(settings, folder, arguments.kills, arguments.seed):
            if group in arguments.only:
                rows.append(Row(case))
                do(rows[-1])
                print(rows[-1], flush=True)
    findings = kept(rows, settings, arguments, chosen)
    print(f"{sum(row.n for row in rows)} runs stopped, {findings['violations']} violations")
    if arguments.json:
        arguments.json.write_text(json.dumps(findings, indent=1) + "\n")
    if findings["violations"]:
        raise SystemExit(1)


if __name__ == "__main__":
    enter_namespace()
    main()
