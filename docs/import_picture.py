"""The picture of imports on the page "Contributing": rooms of the package in their layers, from the code itself."""

import re
import tomllib
from itertools import pairwise
from pathlib import Path

import grimp
import networkx as nx
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path as Line

ROOT = Path(__file__).parents[1]
WIDE, THIN = 1.0, 0.22
"""Width of a room, and of a line that goes on between rooms."""

PULL = 0.85
"""Below 1 the layers keep near to the middle."""


def layers() -> list[list[str]]:
    """Rooms by layer, from the top, as the contract in pyproject.toml has them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    rows = next(each["layers"] for each in contracts if each.get("containers") == ["sthist"])
    split = [row.replace(":", "|").replace(" ", "").split("|") for row in rows]
    return [[room for room in row if room != "__main__"] for row in split]  # python -m sthist is the command line


def imports(rooms: set[str]) -> nx.DiGraph:
    """Which room imports which; systems are rooms of their own."""
    graph, modules = nx.DiGraph(), grimp.build_graph("sthist")

    def room_of(module: str) -> str:
        parts = module.split(".")[1:3]
        return ".".join(parts) if parts[:1] == ["systems"] and len(parts) == 2 else "".join(parts[:1])

    for module in modules.modules:
        for other in modules.find_modules_directly_imported_by(module):
            pair = room_of(module), room_of(other)
            if pair[0] != pair[1] and {each.split(".")[0] for each in pair} <= rooms:
                graph.add_edge(*pair)
    return graph


def named() -> set[tuple[str, str]]:
    """Front doors, and the systems whose names they hand on when these are asked for."""
    files = {door: (ROOT / "src" / "sthist" / door / "__init__.py").read_text() for door in ("tl", "models")}
    return {(door, system) for door, text in files.items() for system in re.findall(r'"(systems\.\w+)', text)}


def write(folder: Path) -> None:
    """Draw the picture as ``imports.svg``."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = layers()
    graph = imports({room for row in rows for room in row})
    graph.add_edges_from(named())
    systems = sorted(room for room in graph if room.startswith("systems."))
    rows = [systems if row == ["systems"] else row for row in rows]
    level = {room: i for i, row in enumerate(rows) for room in row}
    upward = [edge for edge in graph.edges if level[edge[0]] >= level[edge[1]]]
    assert not upward, f"Imports that do not go down: {upward}"
    lines = nx.DiGraph(nx.transitive_reduction(graph).edges)

    # Lines to one room that pass a layer meet there, in a point between its rooms.
    hops = set()
    nodes: list[list[str]] = [list(row) for row in rows]
    for room, other in lines.edges:
        passed = [f"{other}@{i}" for i in range(level[room] + 1, level[other])]
        for i, point in enumerate(passed, start=level[room] + 1):
            if point not in nodes[i]:
                nodes[i].append(point)
        hops |= set(pairwise([room, *passed, other]))
    x = _places(nodes, hops)

    figure = Figure(figsize=(9, 0.82 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    row_of = {node: i for i, row in enumerate(nodes) for node in row}
    colours = [f"C{i}" for i in range(10)]
    targets = sorted({other.split("@")[0] for _, other in hops})
    for start, end in hops:
        colour = colours[targets.index(end.split("@")[0]) % len(colours)]
        style = {"ec": colour, "ls": "--" if (start, end) in named() else "-"}
        _line(
            axes, (x[start], row_of[start]), (x[end], row_of[end]), style, starts="@" not in start, ends="@" not in end
        )
    for i, row in enumerate(rows):
        for room in row:
            box = FancyBboxPatch(
                (x[room] - 0.42, i - 0.17), 0.84, 0.34, "round,pad=0.03", fc="white", ec="0.25", zorder=3
            )
            axes.add_patch(box)
            label = room.removeprefix("systems.")
            axes.text(x[room], i, label, ha="center", va="center", fontsize=9, zorder=4)
        if row == systems:
            axes.text(min(x[room] for room in row) - 0.55, i, "systems:", ha="right", va="center", fontsize=9)
    axes.set(xlim=(min(x.values()) - 0.6, max(x.values()) + 0.6), ylim=(len(rows) - 0.6, -0.4))
    axes.axis("off")
    figure.savefig(folder / "imports.svg", metadata={"Date": None})


def _places(nodes: list[list[str]], hops: set[tuple[str, str]]) -> dict[str, float]:
    """Where nodes lie along their layers: near to what they are linked with."""
    near: dict[str, list[str]] = {}
    for start, end in hops:
        near.setdefault(start, []).append(end)
        near.setdefault(end, []).append(start)
    x = {node: i - (len(row) - 1) / 2 for row in nodes for i, node in enumerate(row)}
    for _ in range(40):
        for row in nodes:
            wish = {node: PULL * sum(x[each] for each in near[node]) / len(near[node]) for node in row}
            row.sort(key=lambda node: wish[node])
            widths = [THIN if "@" in node else WIDE for node in row]
            place, ends = -float("inf"), []
            for node, width in zip(row, widths, strict=True):
                place = max(place + width / 2, wish[node])
                ends.append(place)
                place += width / 2
            shift = sum(wish[node] - end for node, end in zip(row, ends, strict=True)) / len(row)
            x |= {node: end + shift for node, end in zip(row, ends, strict=True)}
    return x


def _line(
    axes: object,
    start: tuple[float, float],
    end: tuple[float, float],
    style: dict[str, str],
    *,
    starts: bool,
    ends: bool,
) -> None:
    """A line between layers, with a head where it ends at a room."""
    (x0, y0), (x1, y1) = start, end
    y0, y1 = y0 + 0.2 * starts, y1 - 0.22 * ends
    middle = (y0 + y1) / 2
    curve = Line([(x0, y0), (x0, middle), (x1, middle), (x1, y1)], [Line.MOVETO, *[Line.CURVE4] * 3])
    axes.add_patch(PathPatch(curve, fc="none", lw=1.1, **style))  # type: ignore[attr-defined]
    if ends:
        axes.plot(x1, y1, marker="v", ms=4, color=style["ec"])  # type: ignore[attr-defined]


if __name__ == "__main__":
    write(ROOT / "docs" / "generated")
