"""Tables of ``docs/expression_ranking.md`` and ``docs/expression.md``, from ``studies/results/expression_her2st.json``.

Run ``python studies/expression/ranking.py`` to print them, with ``--write`` to put them into the pages, between the two
comments of each.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "studies" / "results" / "expression_her2st.json"
TASKS = ("one section", "within C", "C to B4", "B4 to C")
MOST_EXPRESSED, MOST_VARIABLE = "250 most expressed", "50 most variable"
RANKED_BY = "within C"
SHORT = {
    "training mean": "training mean, the same everywhere",
    "shuffled spots (ridge, several embeddings)": "shuffled spots",
    "places alone": "places alone, without an image",
    "one map: nuclei density": "one map for all genes: how many nuclei",
    "ridge, as published references": "ridge on `morphology`, tiles of 224 µm",
    "ridge, several embeddings": "ridge on `morphology` and `efficientnet-lite0-early`, three sizes of tiles, `rank=5`",
    "ridge, several embeddings, depth 1000": "the same, rank 8, trained on `depth=1000`",
    "bleep, frozen": "BLEEP on `efficientnet-lite0-early`",
    "stnet, frozen": "ST-Net on the same",
    "deepspot": "DeepSpot on the same",
    "istar-like small, morphology, 100 epochs": "iStar, small, on `morphology`",
    "histogene small, 100 epochs": "HisToGene, small, from random weights",
    "thitogene small, 100 epochs": "THItoGene, the same",
}


def rows() -> pd.DataFrame:
    """What the study has saved."""
    return pd.DataFrame(json.loads(RESULTS.read_text())["rows"]).astype({"pearson_mean": float})


def cell(found: pd.DataFrame, score: str = "pearson_mean", *, interval: bool = False) -> str:
    """Mean of a score over seeds; and from the least to the largest bound of the intervals of all seeds."""
    if found.empty or score not in found:
        return ""
    mean = found[score].mean()
    if not np.isfinite(mean):
        return "none"
    shown = [mean, found["low"].min(), found["high"].max()]
    first, low, high = (f"{round(value, 2) + 0.0:.2f}" for value in shown)  # no -0.00
    return f"{first} ({low} to {high})" if interval else first


def ranked(table: pd.DataFrame) -> list[str]:
    """Models, the best at the task that they are ranked by first, and those that have no score there last."""
    known = table[(table.task == RANKED_BY) & (table.genes == MOST_EXPRESSED)]
    means = known.groupby("model")["pearson_mean"].mean()
    return [str(name) for name in means.sort_values(ascending=False, na_position="last", kind="stable").index]


def markdown(header: list[str], lines: list[list[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *lines])


def ranking(table: pd.DataFrame) -> str:
    """All models at each task, on the most expressed genes, with intervals, and what they cost."""
    lines = []
    for name in ranked(table):
        mine = table[(table.model == name) & (table.genes == MOST_EXPRESSED)]
        scores = [cell(mine[mine.task == task], interval=True) for task in TASKS]
        there = mine[mine.task == RANKED_BY]
        lines.append([name, *scores, *costs(there)])
    return markdown(["model", *TASKS, "seeds", "seconds", "GB"], lines)


def costs(found: pd.DataFrame) -> list[str]:
    """Seeds, the least time of them and the least memory; of nulls nothing."""
    if found["seconds"].isna().all():
        return ["", "", ""]
    seeds = found["seed"].dropna().nunique()
    gigabytes = found["peak_mb_until_then"].min() / 1024
    return [str(seeds or ""), f"{found['seconds'].min():.0f}", f"{gigabytes:.1f}"]


def variable(table: pd.DataFrame) -> str:
    """All models on the most variable genes; errors, what is beyond counts, and the score on what they trained on."""
    lines = []
    for name in ranked(table):
        mine = table[table.model == name]
        scores = [cell(mine[(mine.task == task) & (mine.genes == MOST_VARIABLE)]) for task in TASKS]
        there = mine[(mine.task == RANKED_BY) & (mine.genes == MOST_EXPRESSED)]
        beyond = cell(mine[(mine.task == "C to B4") & (mine.genes == MOST_EXPRESSED)], "beyond_counts")
        learned = [cell(mine[mine.task == task], "training_pearson") for task in TASKS[:2]]
        learned = " / ".join(value if value not in ("none", "") else "–" for value in learned)
        more = [learned if learned != "– / –" else "", cell(there, "l1"), cell(there, "pearson_flattened"), beyond]
        lines.append([name, *scores, *("" if value == "none" else value for value in more)])
    header = ["model", *TASKS, "on what trained", "L1", "all values at once", "C to B4, beyond counts"]
    return markdown(header, lines)


def short(table: pd.DataFrame) -> str:
    """Some models within a patient and across: on the most expressed genes, and on the most variable ones."""
    lines = []
    for name, label in SHORT.items():
        mine = table[table.model == name]
        both = [
            " / ".join(
                cell(mine[(mine.task == task) & (mine.genes == genes)]) for genes in (MOST_EXPRESSED, MOST_VARIABLE)
            )
            for task in ("within C", "C to B4")
        ]
        there = mine[(mine.task == RANKED_BY) & (mine.genes == MOST_EXPRESSED)]
        flattened = cell(there, "pearson_flattened").replace("none", "")
        both = [{"none / none": "none", " / ": ""}.get(value, value) for value in both]
        lines.append([label, *both, flattened])
    return markdown(["", "within C", "C to B4", "all values at once, within C"], lines)


PAGES = {"expression_ranking": {"ranking": ranking, "variable": variable}, "expression": {"short": short}}


def filled(page: str, name: str) -> str:
    """A page with its tables as the results have them."""
    table = rows()
    for mark, make in PAGES[name].items():
        between = re.compile(f"(?<=<!-- {mark} -->\n).*?(?=<!-- end of {mark} -->)", re.DOTALL)
        place = between.search(page)
        if place is None:
            raise ValueError(f"{name}.md has no place for the table {mark!r}.")
        page = page[: place.start()] + f"{make(table)}\n" + page[place.end() :]
    return page


def main() -> None:
    """The tables, printed or written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the tables into the pages")
    write = parser.parse_args().write
    for name, tables in PAGES.items():
        path = ROOT / "docs" / f"{name}.md"
        if write:
            path.write_text(filled(path.read_text(), name))
        else:
            print(*(make(rows()) for make in tables.values()), sep="\n\n", end="\n\n")


if __name__ == "__main__":
    main()
