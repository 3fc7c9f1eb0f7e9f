"""Tables of ``docs/virtual_he_studies.md``, from ``studies/results/virtual_he.json`` and ``real_virtual_he.json``.

Run ``python studies/virtual_he/pages.py`` to print them, with ``--write`` to put them into the page, between the two
comments of each.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS, PAGE = ROOT / "studies" / "results", ROOT / "docs" / "virtual_he_studies.md"
MODEL, SIMULATORS = "small", ("cells", "eosin")
SHOWN = {
    "mean colour of the training": "mean colour of the training (null)",
    "beer_lambert": "`beer-lambert`",
    "beer_lambert, best of the training's colours": "`beer-lambert`, best of the training's colours",
    "st2he-small, the first": "the first `st2he-small`",
    "multiplex2brightfield": "multiplex2brightfield 0.2.8",
    "falsecolor": "falsecolor 1.1.4",
    "pix2pix": "`Pix2Pix`",
    "pix2pix, own colours": "`Pix2Pix`, the section's own colours",
    MODEL: "`st2he-small`, colours of the training",
    f"{MODEL}, own colours": "`st2he-small`, the section's own colours",
}
NULLS = {
    f"{MODEL}, own colours": "as it is",
    f"{MODEL}, own colours, molecules erased": "molecules erased",
    f"{MODEL}, own colours, molecules swapped": "molecules of another tile",
}
LIGHTS = {
    f"{MODEL}, own colours, {light}": light
    for light in ("gamma 0.5", "gamma 2", "blur", "background", "shading", "noise")
}
WHAT = {"section": "a section of a training patient", "patient": "another patient", "tissue": "another tissue"}


def rows() -> list[dict[str, Any]]:
    """What the study of held-out sections has saved."""
    return json.loads((RESULTS / "virtual_he.json").read_text())["rows"]


def markdown(header: list[str], lines: list[list[str]]) -> str:
    """A table."""
    shown = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in shown)


def number(value: Any, digits: int) -> str:
    """A figure, without the 0 before the point of those below 1."""
    if value is None:
        return ""
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def both(found: dict[str, dict], score: str, digits: int) -> str:
    """A score under both simulators."""
    return " / ".join(number(found.get(each, {}).get(score), digits) for each in SIMULATORS if each in found)


def places() -> list[tuple[str, str, float]]:
    """What is held out, section and µm/px, in the order of the study."""
    return list(dict.fromkeys((row["held out"], row["section"], row["mpp"]) for row in rows()))


def of_place(place: tuple[str, str, float]) -> dict[str, dict[str, dict]]:
    """Rows of a place by method and simulator; those that see no molecules stand under both."""
    found: dict[str, dict[str, dict]] = {}
    for row in rows():
        if (row["held out"], row["section"], row["mpp"]) == place:
            for simulator in SIMULATORS if row["simulator"] == "any" else (row["simulator"],):
                found.setdefault(row["method"], {})[simulator] = row
    return found


def held_out() -> str:
    """All methods on all held-out sections."""
    parts = []
    for place in places():
        found = of_place(place)
        what, section, mpp = place
        some = next(iter(found.values()))[SIMULATORS[0]]
        lines = [
            [
                name,
                *(
                    both(found[method], score, digits)
                    for score, digits in (("ssim", 3), ("psnr", 1), ("kid", 1), ("fid", 0), ("nucleus_f1", 2))
                ),
            ]
            for method, name in SHOWN.items()
            if method in found
        ]
        floor = found["real, half against half"]
        lines.append(["one half of the real tiles against the other", "", "", "", number(floor["cells"]["fid"], 0), ""])
        title = f"**{section}, {WHAT[what]}, {mpp:g} µm/px** ({some['n']} tiles, {some['blocks']} blocks)"
        parts.append(f"{title}\n\n{markdown(['', 'SSIM', 'PSNR', 'KID', 'FID', 'nuclei F1'], lines)}")
    return "\n\n".join(parts)


def nulls() -> str:
    """What erased and swapped molecules cost, with intervals."""
    lines = []
    for place in places():
        found = of_place(place)
        for simulator in SIMULATORS:
            cells = [f"{place[1]}, {place[2]:g} µm/px", simulator]
            for method in NULLS:
                row = found[method][simulator]
                low, high = row["psnr_interval"]
                cells.append(f"{number(row['ssim'], 3)} / {row['psnr']:.2f} ({low:.1f} to {high:.1f})")
            lines.append(cells)
    return markdown(["", "transcripts by", *NULLS.values()], lines)


def lights() -> str:
    """PSNR lost under another light."""
    lines = []
    for place in places():
        found = of_place(place)
        if not set(LIGHTS) <= set(found):
            continue
        for simulator in SIMULATORS:
            before = found[f"{MODEL}, own colours"][simulator]["psnr"]
            lost = [f"{found[method][simulator]['psnr'] - before:+.1f}" for method in LIGHTS]
            lines.append([f"{place[1]}, {place[2]:g} µm/px", simulator, f"{before:.1f}", *lost])
    return markdown(["", "transcripts by", "PSNR", *LIGHTS.values()], lines)


def whole() -> str:
    """Border and seams of whole images."""
    found = json.loads((RESULTS / "virtual_he.json").read_text())["whole"]
    lines = [
        [section, simulator, f"{each['inside']:.1f}", f"{each['border']:.1f}", number(each["seam"], 2)]
        for section, simulators in found.items()
        for simulator, each in simulators.items()
    ]
    return markdown(["", "transcripts by", "PSNR inside", "PSNR, outer 8 px", "seams"], lines)


def real() -> str:
    """Nuclei and seams on real sections."""
    sections = json.loads((RESULTS / "real_virtual_he.json").read_text())["sections"]
    lines = []
    for truth in ("the vendor's outlines", "the stain"):
        for model, name in (("built-in", "`beer-lambert`"), ("learned", "`st2he-small`")):
            scores = [each[model][f"nuclei against {truth}"]["virtual"]["nucleus_f1"] for each in sections.values()]
            lines.append([f"nuclei against {truth}, {name}", *(number(score, 2) for score in scores)])
        chance = [each["learned"][f"nuclei against {truth}"]["shuffled"]["nucleus_f1"] for each in sections.values()]
        lines.append([f"nuclei of another tile against {truth} (null)", *(number(score, 2) for score in chance)])
    lines.append(
        ["seams, `st2he-small`", *(number(each["learned"]["seam"].get("ratio"), 2) for each in sections.values())]
    )
    return markdown(["", *sections], lines)


TABLES = {"held out": held_out, "nulls": nulls, "lights": lights, "whole": whole, "real": real}


def filled(page: str) -> str:
    """The page with its tables as the results have them."""
    for mark, make in TABLES.items():
        between = re.compile(f"(?<=<!-- {mark} -->\n).*?(?=<!-- end of {mark} -->)", re.DOTALL)
        place = between.search(page)
        if place is None:
            raise ValueError(f"{PAGE.name} has no place for the table {mark!r}.")
        page = page[: place.start()] + f"{make()}\n" + page[place.end() :]
    return page


def main() -> None:
    """The tables, printed or written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into the page")
    if parser.parse_args().write:
        PAGE.write_text(filled(PAGE.read_text()))
    else:
        print(*(make() for make in TABLES.values()), sep="\n\n")


if __name__ == "__main__":
    main()
