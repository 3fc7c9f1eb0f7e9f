"""Refuse lower bounds that the lowest set of packages does not reach: nobody could have tried them."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

KNOWN = {
    "lightning": "2.5.0 and 2.5.1 can be had; the resolver takes 2.5.2 first",
    "tifffile": "the first version of August 2024 is 2024.8.10",
}


def main(path: Path) -> None:
    """Compare the bounds in pyproject.toml with a file of uv."""
    lines = re.findall(r"^([\w.-]+)==([\w.+!]+)", path.read_text(), re.MULTILINE)
    versions = {canonicalize_name(name): Version(version) for name, version in lines}
    wrong = []
    for text in tomllib.loads(Path("pyproject.toml").read_text())["project"]["dependencies"]:
        needed = Requirement(text)
        lower = max(Version(each.version) for each in needed.specifier if each.operator == ">=")
        found = versions[canonicalize_name(needed.name)]
        if found != lower and needed.name not in KNOWN:
            wrong.append(f"{text}: the lowest set has {found}")
    if wrong:
        sys.exit("Lower bounds that no set reaches:\n" + "\n".join(wrong))
    print("All lower bounds can be had together.")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
