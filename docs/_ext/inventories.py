"""Where names of other projects are documented, kept here so that a build needs no network and still checks each name.

``docs/inventories.csv`` lists the names that our pages refer to. ``python docs/_ext/inventories.py`` compares it with
the inventories that the projects publish (it needs a network), and says which rows have moved.
"""

from __future__ import annotations

import csv
import sys
import urllib.request
import zlib
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

from sphinx.util.inventory import InventoryFile

TABLE = Path(__file__).parents[1] / "inventories.csv"
SITES = {
    "python": "https://docs.python.org/3/",
    "numpy": "https://numpy.org/doc/stable/",
    "pandas": "https://pandas.pydata.org/docs/",
    "matplotlib": "https://matplotlib.org/stable/",
    "torch": "https://docs.pytorch.org/docs/stable/",
    "anndata": "https://anndata.readthedocs.io/en/stable/",
    "scanpy": "https://scanpy.readthedocs.io/en/stable/",
    "spatialdata": "https://spatialdata.scverse.org/en/stable/",
    "spatialdata-io": "https://spatialdata.scverse.org/projects/io/en/stable/",
    "geopandas": "https://geopandas.org/en/stable/",
    "skimage": "https://scikit-image.org/docs/stable/",
}

HEAD = """# Sphinx inventory version 2
# Project: {}
# Version:
# The remainder of this file is compressed using zlib.
"""


def rows() -> dict[str, list[dict[str, str]]]:
    """Name, role and page of each name, by project."""
    with TABLE.open() as file:
        all_rows = list(csv.DictReader(file))
    return {project: [row for row in all_rows if row["project"] == project] for project in SITES}


def write(folder: Path) -> dict[str, tuple[str, str]]:
    """Write an inventory for each project, and return what intersphinx takes."""
    folder.mkdir(parents=True, exist_ok=True)
    mapping: dict[str, tuple[str, str]] = {}
    known = rows()
    for project, site in SITES.items():
        body = "".join(f"{each['name']} py:{each['role']} 1 {each['page']} -\n" for each in known[project])
        file = folder / f"{project}.inv"
        file.write_bytes(HEAD.format(project).encode() + zlib.compress(body.encode()))
        mapping[project] = (site, str(file))
    return mapping


def moved() -> list[str]:
    """Rows of the table that a project's own inventory does not have, or has elsewhere."""
    wrong = []
    for project, site in SITES.items():
        with urllib.request.urlopen(f"{site}objects.inv", timeout=30) as answer:
            published = InventoryFile.load(BytesIO(answer.read()), site, lambda base, page: base + page)
        for row in rows()[project]:
            there = published.get(f"py:{row['role']}", {}).get(row["name"], SimpleNamespace(uri="nowhere")).uri
            here = site + row["page"].replace("$", row["name"])
            if there != here:
                wrong.append(f"{row['name']}: {here} is {there}")
    return wrong


if __name__ == "__main__":
    sys.exit("\n".join(moved()))
