"""What each verb that writes leaves behind when it is killed before one of the steps that change the store.

Run ``python bench/kills.py [--json FILE] [--only VERB ...] [--fewer] [--add]``. Every verb of ``tests/writing.py`` is
run on a toy sample on zarr, with and without consolidated metadata, without and with an earlier result
(``overwrite=True``), and as on a file system that cannot exchange folders. A copy of this process is forked for each
step and ended by SIGKILL just before it. ``read_zarr`` must give the elements and attributes of before or the complete
result, the same call must complete it, and nothing may be left. The exit status says whether all held.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import warnings
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import killed
from writing import VERBS

import sthist
from sthist._store import store

EVERY = tuple(product((True, False), (False, True), (True, False)))
"""Consolidated metadata or not, an earlier result or none, a file system that exchanges folders or not."""

SETTING = ("verb", "consolidated", "overwrite", "exchange")
FEWER = ((True, False, True), (False, True, False))


def main() -> None:
    """Go through the verbs, print, and keep the findings where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the findings are kept")
    parser.add_argument("--only", nargs="+", choices=list(VERBS), default=list(VERBS))
    parser.add_argument("--fewer", action="store_true", help="two of the eight settings for each verb")
    parser.add_argument("--add", action="store_true", help="to what FILE has already, in place of the same settings")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    sthist.settings.progress = False
    sthist.settings.verbosity = "error"
    store.datetime.datetime = killed.SameTime
    rows = []
    for name in arguments.only:
        verb = VERBS[name]
        for consolidated, overwrite, exchange in FEWER if arguments.fewer else EVERY:
            with tempfile.TemporaryDirectory(prefix="kills-") as folder:
                start = verb.write(Path(folder) / "start.zarr")
                if overwrite:
                    killed.run(verb, start, False)
                if not consolidated:
                    killed.unconsolidate(start)
                wrong = dict(killed.kills(verb, start, Path(folder), overwrite=overwrite, exchange=exchange))
            rows.append(
                {
                    "verb": name,
                    "consolidated": consolidated,
                    "overwrite": overwrite,
                    "exchange": exchange,
                    "kills": len(wrong) - 1,  # the last run was not killed
                    "violations": {step: what for step, what in wrong.items() if what},
                }
            )
            print(rows[-1], flush=True)
    if arguments.add and arguments.json.exists():
        same = {tuple(row[name] for name in SETTING) for row in rows}
        kept = json.loads(arguments.json.read_text())["rows"]
        rows = [row for row in kept if tuple(row[name] for name in SETTING) not in same] + rows
    found = {
        "command": "python bench/kills.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}",
        "kills": sum(row["kills"] for row in rows),
        "violations": sum(len(row["violations"]) for row in rows),
        "rows": rows,
    }
    print(f"{found['kills']} kills, {found['violations']} violations")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    if found["violations"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
