"""Damaged, hostile and oversize files, over every reader and loader.

Run ``python bench/fuzz.py [--cases 10000] [--first 0] [--only TARGET ...] [--json FILE] [--rows FILE]``; shards are
runs with other ``--first``, and ``--merge FILE ...`` puts their rows together. Each case is a miniature of what a
reader takes, of which one file is damaged (``tests/fuzz/mutators.py``: truncated, flipped and zeroed bytes, exchanged,
empty and missing files, links to nowhere, wrong values and types in HDF5, Parquet, JSON, csv, zip, safetensors and
TIFF, small files that unpack to gigabytes), and which is read in a child process with 3 GB above what Python itself has
and 20 s of computing. The classes, and what a format cannot show, stand in ``tests/fuzz/engine.py``. Where the damage
is to one column, key, dataset, tensor, member or line, it is counted whether the message names it. The exit status says
whether no process died, hung or took too much memory, no change went unsaid, and 99.5 % of the errors are sthist's own
and name a file and, where it is known, the field.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections import Counter
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1] / "tests")  # in place of this folder, whose fuzz.py hides the package

BAD = ("silent", "no file", "foreign", "memory", "hang", "death")
SHARE = 0.995
SHOWN = ("target", "seed", "file", "damage", "fields", "kind", "error", "message", "where")


def summary(rows: list[dict], facts: dict) -> dict:
    """Counts per target and class, and the figures that are promised."""
    table: dict[str, Counter] = {}
    for row in rows:
        table.setdefault(row["target"], Counter())[row["kind"]] += 1
    total = sum(table.values(), Counter())
    own = [row for row in rows if row["kind"] == "own"]
    of_field = [row for row in own if row["fields"]]
    failing = sum(total[kind] for kind in ("own", "no file", "foreign", "memory"))
    return facts | {
        "cases": len(rows),
        "total": dict(total),
        "own_share_of_failing": round(total["own"] / max(1, failing), 4),
        "names_the_damaged_file": round(sum(row["names_it"] for row in own) / max(1, len(own)), 4),
        "refused_with_a_known_field": len(of_field),
        "names_the_damaged_field": round(sum(row["names_field"] for row in of_field) / max(1, len(of_field)), 4),
        "names_both": round(sum(row["names_field"] and row["names_it"] for row in of_field) / max(1, len(of_field)), 4),
        "slowest_s": max(row["seconds"] for row in rows),
        "targets": {name: dict(sorted(counts.items())) for name, counts in sorted(table.items())},
        "bad": [
            {
                key: row[key]
                for key in ("target", "seed", "file", "damage", "fields", "kind", "error", "message", "where")
            }
            for row in rows
            if row["kind"] in BAD or (row["kind"] == "own" and row["fields"] and not row["names_field"])
        ][:200],
    }


def holds(result: dict) -> bool:
    """Whether the promises hold."""
    total = result["total"]
    none = all(total.get(kind, 0) == 0 for kind in ("silent", "memory", "hang", "death"))
    return none and min(result["own_share_of_failing"], result["names_both"]) >= SHARE


def main() -> int:
    """Run, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="*", help="these cases, in place of --first and --cases")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rows", type=Path, help="all outcomes, one JSON object a line")
    parser.add_argument("--merge", type=Path, nargs="*", help="rows of shards; the last one of a case counts")
    parser.add_argument("--no-huge", action="store_true")
    arguments = parser.parse_args()
    rows: list[dict] = []
    if arguments.merge:
        every = [json.loads(line) for file in arguments.merge for line in file.read_text().splitlines()]
        rows = list({row["seed"]: row for row in every}.values())
    else:
        from fuzz.engine import Fuzzer, as_row

        fuzzer = Fuzzer(arguments.only, huge=not arguments.no_huge)
        start = time.monotonic()
        out = arguments.rows.open("a") if arguments.rows else None
        for seed in arguments.seeds or range(arguments.first, arguments.first + arguments.cases):
            row = as_row(fuzzer.case(seed))
            rows.append(row)
            if out:
                out.write(json.dumps(row) + "\n")
                out.flush()
        fuzzer.close()
        print(f"{len(rows)} cases in {time.monotonic() - start:.0f} s")
    facts = {
        "command": " ".join(["python bench/fuzz.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }
    result = summary(rows, facts)
    kinds = ("same", "value", "said", "own", *BAD)
    print(f"{'':14}" + "".join(f"{kind:>9}" for kind in kinds))
    for name, counts in {**result["targets"], "total": result["total"]}.items():
        print(f"{name:14}" + "".join(f"{counts.get(kind, 0):9}" for kind in kinds))
    print(f"own of failing: {result['own_share_of_failing']:.2%}")
    print(f"naming the damaged file and field, where it is known: {result['names_both']:.2%}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if holds(result) else 1


if __name__ == "__main__":
    sys.exit(main())
