"""Files from the network: into the cache, checked, resumable, and not without saying what they are."""

from __future__ import annotations

import base64
import re
import shutil
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sthist._disk import full_disk_explained
from sthist._settings import logger, settings
from sthist._weights import hub

if TYPE_CHECKING:
    from collections.abc import Mapping

    import requests

ATTEMPTS = 3
TIMEOUT_S = 60
PIECE = 2**16
HUB_PAGES = "https://huggingface.co/datasets/"


@dataclass(frozen=True)
class RemoteFile:
    """A file on the network."""

    url: str
    n_bytes: int = 0  # where it is known beforehand
    sha256: str | None = None  # where the source publishes it
    name: str = ""  # under which it is kept; by default that of the URL

    @property
    def file_name(self) -> str:
        """The name that it is kept under."""
        return self.name or self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Source:
    """A public data set."""

    name: str  # of its folder in the cache
    title: str
    licence: str
    homepage: str
    files: tuple[RemoteFile, ...] = ()
    cite: str = ""

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return Path(settings.cache_dir) / "datasets" / self.name

    def describe(self) -> str:
        """Title, size, licence and homepage in one sentence."""
        known = sum(file.n_bytes for file in self.files)
        size = f"{known / 1e9:.2f} GB" if known >= 1e8 else f"{known / 1e6:.1f} MB" if known else "of unknown size"
        cite = f" Please cite {self.cite}." if self.cite else ""
        return f"{self.title}: {size}; licence: {self.licence}; {self.homepage}.{cite}"


class _RefusedError(Exception):
    """What a host answers when it does not give a file."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status} {reason}")
        self.status = status


def fetch(source: Source) -> list[Path]:
    """The files of a data set, downloaded where they are not in the cache.

    A transfer that was broken goes on where it stopped, also in another process.
    """
    missing = [file for file in source.files if not (source.folder / file.file_name).exists()]
    if missing:
        if settings.offline:
            raise ConnectionError(_by_hand(source, missing, "sthist.settings.offline is set"))
        source.folder.mkdir(parents=True, exist_ok=True)
        logger.info("Downloading %s To %s.", source.describe(), source.folder)
        needed = sum(file.n_bytes for file in missing)
        free = shutil.disk_usage(source.folder).free
        if needed > free:
            raise OSError(
                f"{source.title} needs {needed / 1e9:.1f} GB in {source.folder}, where {free / 1e9:.1f} GB are free; "
                "set sthist.settings.cache_dir."
            )
    for file in missing:
        _fetch_one(source, file)
    return [source.folder / file.file_name for file in source.files]


def _fetch_one(source: Source, file: RemoteFile) -> None:
    import pooch
    import requests

    partial = source.folder / f"{file.file_name}.part"
    error: Exception | None = None
    for attempt in range(ATTEMPTS):
        try:
            with full_disk_explained(source.folder, "What has come is kept."):
                digests = _transfer(file, partial)
            break
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as broken:
            error = broken
            logger.info("The transfer of %s broke off (%d of %d): %s", file.url, attempt + 1, ATTEMPTS, broken)
        except _RefusedError as refused:
            kind = FileNotFoundError if refused.status in {404, 410} else ConnectionError
            raise kind(_by_hand(source, [file], f"{file.url} answers {refused}")) from None
    else:
        raise ConnectionError(_by_hand(source, [file], f"{file.url} cannot be had: {error}")) from error
    size = partial.stat().st_size
    if not size or (file.n_bytes and size != file.n_bytes):
        partial.unlink()
        raise ValueError(f"{file.url} gave {size} bytes in place of {file.n_bytes or 'a file'}. They were not kept.")
    for name, published in (digests | ({"sha256": file.sha256.lower()} if file.sha256 else {})).items():
        digest = pooch.file_hash(str(partial), alg=name)
        if digest != published:
            partial.unlink()
            raise ValueError(
                f"{file.url} has another {CHECKSUMS[name]} than it should: {digest} in place of {published}. It was "
                "not kept: the file has changed, or was damaged on the way. Try again; if it stays so, do not trust it."
            )
    partial.replace(source.folder / file.file_name)


CHECKSUMS = {"sha256": "SHA-256", "sha512": "SHA-512", "md5": "MD5"}


def _published_digests(headers: Mapping[str, str]) -> dict[str, str]:
    """Checksums of a file that its host states, in hexadecimal, by name; an ETag may be anything, and is not one."""
    stated = ",".join(headers.get(name, "") for name in ("Repr-Digest", "Digest", "x-goog-hash"))
    if "-" not in headers.get("x-amz-checksum-sha256", "-"):  # with a number of parts it is no checksum of the file
        stated += f",sha256={headers['x-amz-checksum-sha256']}"
    found = {}
    for item in stated.split(","):
        name, _, value = item.strip().partition("=")
        name = name.lower().replace("-", "")
        if name in CHECKSUMS:
            found[name] = base64.b64decode(value.strip().strip(":")).hex()
    return found


def _session() -> requests.Session:
    """A session that does not follow from an encrypted address to one that is not."""
    import requests

    class Session(requests.Session):
        def get_redirect_target(self, resp: requests.Response) -> str | None:
            target = super().get_redirect_target(resp)
            whole = urllib.parse.urljoin(resp.url, target or "")
            if target and resp.url.startswith("https:") and not whole.startswith("https:"):
                raise _RefusedError(resp.status_code, f"and leads to {whole}, which is not encrypted")
            return target

    return Session()


def _require_no_page(file: RemoteFile, kind: str, start: bytes = b"") -> None:
    """Refuse a page, such as of a login or an error, that comes in place of a file."""
    head = start.removeprefix(b"\xef\xbb\xbf").lstrip()[:14].lower()
    is_page = "html" in kind.lower() or head.startswith((b"<!doctype html", b"<html"))
    if is_page and not file.file_name.lower().endswith((".html", ".htm")):
        raise _RefusedError(200, "with a page of HTML in place of the file, as of a login or an error")


def _transfer(file: RemoteFile, partial: Path) -> dict[str, str]:
    """Append what is missing to a partial file; returns checksums of the whole that the host states.

    Begin anew where the host cannot go on, or the file is another by now.
    """
    import requests
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    tag_file = partial.with_suffix(".tag")
    have = partial.stat().st_size if partial.exists() and tag_file.exists() else 0
    headers = {"Accept-Encoding": "identity"}  # sizes are those of the file
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": tag_file.read_text()}
    with _session() as session, session.get(file.url, headers=headers, stream=True, timeout=TIMEOUT_S) as answer:
        if answer.status_code == 416:  # all of it is here already, or more than all
            partial.unlink()
            raise requests.ConnectionError(f"{file.url} has no more than the {have} bytes that are here")
        if answer.status_code not in {200, 206}:
            raise _RefusedError(answer.status_code, answer.reason)
        _require_no_page(file, answer.headers.get("Content-Type", ""))
        first = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
        if answer.status_code == 206 and first and int(first[1]) != have:
            partial.unlink()
            raise requests.ConnectionError(f"{file.url} goes on at byte {first[1]}, not {have}")
        have = have if answer.status_code == 206 else 0
        tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        if tag and not tag.startswith("W/"):
            tag_file.write_text(tag)
        else:
            tag_file.unlink(missing_ok=True)
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, disable=not settings.progress) as bar, partial.open("ab" if have else "wb") as out:
            task = bar.add_task(file.file_name, total=total, completed=have)
            for number, piece in enumerate(answer.iter_content(PIECE)):
                if not have and not number:
                    _require_no_page(file, "", piece)
                out.write(piece)
                bar.advance(task, len(piece))
    size = partial.stat().st_size
    if total is not None and size != total:
        raise requests.ConnectionError(f"{size} of {total} bytes came")
    tag_file.unlink(missing_ok=True)
    return _published_digests(answer.headers)


def fetch_from_hub(repository: str, patterns: list[str], source: Source, **options: Any) -> Path:
    """Files of a data set on the Hugging Face hub; returns the folder that holds them."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    logger.info("Downloading %s", source.describe())
    page = f"{HUB_PAGES}{repository}"
    cache = Path(settings.cache_dir) / "hub"
    blobs = cache / f"datasets--{repository.replace('/', '--')}" / "blobs"
    before = set(blobs.glob("*"))
    try:
        folder = Path(
            snapshot_download(
                repository,
                repo_type="dataset",
                allow_patterns=patterns,
                cache_dir=cache,
                local_files_only=settings.offline,
                **options,
            )
        )
    except GatedRepoError as error:
        raise PermissionError(
            f"{source.title} is given on request: accept its terms ({source.licence}) on {page}, then run `hf auth "
            "login`."
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise FileNotFoundError(
            f"The hub has no data set {repository} in that revision, or you are not logged in (`hf auth login`): "
            f"{page}."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError) as error:
        why = "sthist.settings.offline is set, and it is not in the cache" if settings.offline else str(error)
        raise ConnectionError(
            f"{source.title} cannot be had from {page}: {why}. A copy that you have can be read from its folder."
        ) from error
    for path in folder.rglob("*"):
        if path.is_file() and path.resolve() not in before:
            hub.require_whole(path)
    if not any(folder.rglob("*.*")):
        raise FileNotFoundError(f"{repository} has no file like {patterns}: {page}.")
    return folder


def _by_hand(source: Source, files: list[RemoteFile], why: str) -> str:
    names = ", ".join(file.file_name for file in files[:4]) + (" and others" if len(files) > 4 else "")
    where = re.sub(r"\s+", " ", source.homepage)
    return f"{why}. To go on by hand, get {names} from {where} ({source.licence}) and put it into {source.folder}."
