"""The files that alignments come in: a csv, or the zip that Xenium Explorer's "Download alignment file" makes."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

MATRIX, KEYPOINTS = "matrix.csv", "keypoints.csv"
"""What Explorer's zip holds: 3 x 3 numbers without header, and the points that were placed by hand."""

INSTEAD = {
    MATRIX: "Its matrix.csv can be given as matrix=.",
    KEYPOINTS: "Its keypoints.csv can be given as landmarks=.",
}
NO_ALIGNMENT = "What Xenium Explorer's 'Download alignment file' makes holds matrix.csv and keypoints.csv."

MAX_BYTES = 4_000_000
"""Of a file in an archive. A matrix has some hundred bytes, 10,000 keypoints less than 1 MB; more is no alignment."""

MAX_LISTED = 10
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError)


@dataclass(frozen=True)
class Csv:
    """Text of a csv file."""

    text: str  # all of it
    what: str  # the file's name, for messages

    @property
    def rows(self) -> list[list[str]]:
        """The filled cells, row by row."""
        import csv

        rows = [[value.strip() for value in row if value.strip()] for row in csv.reader(self.text.splitlines())]
        return [row for row in rows if row]


def read_csv(path: Path) -> Csv:
    """The text of a csv file."""
    require_file(path)
    return _require_content(_decode(path.read_bytes(), str(path)))


def is_archive(path: Path) -> bool:
    """Whether a file is a zip, or is called one."""
    require_file(path)
    with path.open("rb") as file:
        return path.suffix.lower() == ".zip" or file.read(4) == b"PK\x03\x04"


def require_file(path: Path) -> None:
    """Refuse a path at which there is no file."""
    if path.is_dir():
        files = [file.name for file in sorted(path.iterdir()) if file.suffix.lower() in {".csv", ".zip"}]
        raise FileNotFoundError(f"{path} is a folder; give the alignment file itself. It has {_listed(files)}.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no alignment file {path}.")


def find_member(path: Path, name: str) -> Csv | None:
    """A csv of an archive, wherever in it, in whatever case; None where there is none. Nothing is unpacked to disk."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if not info.is_dir() and _base(info.filename) == name]
            if not members:
                return None
            what = f"{members[0].filename} of {path}"
            # Read to just past the limit: what an archive says of its sizes is its maker's word.
            content = b"" if len(members) > 1 else _read(archive, members[0])
    except (*DAMAGED, RuntimeError) as error:
        raise ValueError(
            f"{path} is damaged or no zip that can be read ({error}). Download the alignment file again."
        ) from None
    if len(members) > 1:
        listed = _listed([info.filename for info in members])
        raise ValueError(f"{path} holds {len(members)} files {name}: {listed}. Unpack the right one and give that.")
    if len(content) > MAX_BYTES:
        raise ValueError(f"{what} is larger than {MAX_BYTES / 1e6:.0f} MB; no alignment is. Unpack and check it.")
    return _decode(content, what)


def require_member(path: Path, name: str) -> Csv:
    """As ``find_member``, for a csv that has to be there."""
    csv = find_member(path, name)
    if csv is None:
        with zipfile.ZipFile(path) as archive:
            held = [info.filename for info in archive.infolist() if not info.is_dir()]
        others = [text for other, text in INSTEAD.items() if other in map(_base, held)]
        raise ValueError(f"{path} holds no {name}; it holds {_listed(held)}. {others[0] if others else NO_ALIGNMENT}")
    return _require_content(csv)


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if member.flag_bits & 1:
        raise RuntimeError(f"{member.filename} is encrypted")
    with archive.open(member) as file:
        return file.read(MAX_BYTES + 1)


def _base(name: str) -> str:
    """A member's name without its folders; some tools part these by backslashes."""
    return PurePosixPath(name.replace("\\", "/")).name.lower()


def _decode(content: bytes, what: str) -> Csv:
    try:
        return Csv(content.decode("utf-8-sig"), what)
    except UnicodeDecodeError:
        raise ValueError(f"{what} is no text; it should hold a 3 x 3 matrix or landmarks.") from None


def _require_content(csv: Csv) -> Csv:
    if not csv.rows:
        raise ValueError(f"{csv.what} is empty; it should hold a 3 x 3 matrix or landmarks.")
    return csv


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return (", ".join(repr(name) for name in names[:MAX_LISTED]) or "nothing") + more
