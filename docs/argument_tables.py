"""Which verb takes which argument: the tables of the page "Arguments", from the signatures and from arguments.csv."""

import csv
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sthist

SPACES = ("io", "pp", "tl", "pl", "datasets", "tiles", "encoders", "metrics", "metrics.image", "benchmark")


def meanings() -> dict[str, str]:
    """What each name of an argument means; others are not used."""
    with (Path(__file__).parent / "arguments.csv").open() as file:
        return {row["name"]: row["meaning"] for row in csv.DictReader(file)}


def public_functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Functions that users call, and classes that they make, but for those that only hold values; by dotted name."""
    for space in SPACES:
        module: Any = sthist
        for part in space.split("."):
            module = getattr(module, part)
        for name in module.__all__:
            found = getattr(module, name)
            holds_values = isinstance(found, type) and (
                issubclass(found, tuple | Exception) or hasattr(found, "__dataclass_fields__")
            )
            if callable(found) and not inspect.ismodule(found) and not holds_values:
                yield f"{space}.{name}", found


def write(folder: Path) -> None:
    """Write both tables as pages that another includes."""
    folder.mkdir(parents=True, exist_ok=True)
    users = defaultdict(list)
    lines = ["| call | arguments |", "|---|---|"]
    for name, found in public_functions():
        arguments = list(inspect.signature(found).parameters)
        for argument in arguments:
            users[argument].append(name)
        lines.append(f"| `{name}` | {', '.join(f'`{argument}`' for argument in arguments)} |")
    (folder / "arguments_by_call.md").write_text("\n".join(lines) + "\n")
    lines = ["| argument | meaning | taken by |", "|---|---|---|"]
    known = meanings()
    for argument in sorted(users):
        lines.append(f"| `{argument}` | {known[argument]} | {', '.join(f'`{name}`' for name in users[argument])} |")
    (folder / "arguments_by_name.md").write_text("\n".join(lines) + "\n")
