"""Files from the Hugging Face hub: from its cache, or over the network, and quick to say so where neither has them."""

from __future__ import annotations

import hashlib
import re
import socket
import threading
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sthist._settings import settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sthist._weights.source import Source

CONNECT_S = 0.8  # seconds that a machine has to reach the hub; one attempt is made
COMMIT = re.compile(r"[0-9a-f]{40}")
DIGEST = re.compile(r"[0-9a-f]{64}")


def fetch(source: Source, revision: str | None = None, *, announce: bool = True) -> Path:
    """The weights of an encoder, with its further files beside them.

    What is in the cache of the hub is used as it is, without asking the network.
    """
    weights = _cached(source, source.files, revision)
    online = weights is None
    if weights is None:
        if announce:
            source.announce("Getting the weights of")
        require_network(source)
        weights = _first(source, source.files, revision)
    elif announce:
        source.announce("Using the weights in the cache of")
    same = commit_of(weights) or revision
    unknown = [name for name in source.extras if _look_up(source, name, same) is None]
    if unknown and (online or reachable()):
        for name in unknown:
            _download(source, name, same)
    return weights


def cached(source: Source) -> Path | None:
    """The weights of an encoder in the cache of the hub; None where they are not there. The network is not asked."""
    return _cached(source, source.files, None)


def require_network(source: Source) -> None:
    """Go on only if the hub can be reached."""
    if is_offline():
        raise ConnectionError(
            by_hand(source, "sthist.settings.offline or HF_HUB_OFFLINE is set, and they are not in the cache")
        )
    if not reachable():
        raise ConnectionError(
            by_hand(source, f"the hub cannot be reached (one attempt of {CONNECT_S} s), and they are not in the cache")
        )


def is_offline() -> bool:
    """Whether the network must not be asked."""
    from huggingface_hub import constants

    return settings.offline or bool(constants.HF_HUB_OFFLINE)


def by_hand(source: Source, why: str) -> str:
    """Why weights cannot be had, and the ways out."""
    return (
        f"The weights of {source.hub_id} cannot be had: {why}. Licence: {source.licence}; accept it and get them "
        f"on {source.page} "
        f"(`hf download {source.hub_id}` on a machine with a network), then pass weights=, their file or folder."
    )


def commit_of(path: Path) -> str | None:
    """The commit that a file of the hub's cache belongs to."""
    name = path.parent.name
    return name if COMMIT.fullmatch(name) else None


def published_digest(path: Path) -> str | None:
    """The SHA-256 that the hub gives for a file of its cache, which keeps large files under it."""
    name = path.resolve().name
    return name if DIGEST.fullmatch(name) else None


def require_whole(path: Path) -> None:
    """Compare a file that has come from the hub with the checksum that the hub gives, and delete one that differs.

    The hub's cache keeps files under it: the SHA-256 of large ones, git's SHA-1 of small ones.
    """
    blob = path.resolve()
    if DIGEST.fullmatch(blob.name):
        digest = hashlib.sha256()
    elif COMMIT.fullmatch(blob.name):
        digest = hashlib.sha1(f"blob {blob.stat().st_size}\0".encode(), usedforsecurity=False)
    else:  # a system without links
        return
    with blob.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    if digest.hexdigest() != blob.name:
        blob.unlink()
        path.unlink(missing_ok=True)
        raise ValueError(
            f"{path.name} was damaged on the way: its checksum is {digest.hexdigest()}, the hub's {blob.name}. It was "
            "not kept; try again."
        )


def _cached(source: Source, names: Sequence[str], revision: str | None) -> Path | None:
    paths = (_look_up(source, name, revision) for name in names)
    return next((Path(path) for path in paths if isinstance(path, str)), None)


def _look_up(source: Source, name: str, revision: str | None) -> Any:
    """Path of a cached file, None if nothing is known of it, or a mark that the model does not have it."""
    from huggingface_hub import try_to_load_from_cache

    return try_to_load_from_cache(source.hub_id, name, revision=revision or "main")


def _first(source: Source, names: Sequence[str], revision: str | None) -> Path:
    for name in names:
        path = _download(source, name, revision)
        if path is not None:
            return path
    raise FileNotFoundError(
        f"{source.page} has none of the files {list(names)}. Pass weights=, the file or folder that you have."
    )


def _download(source: Source, name: str, revision: str | None) -> Path | None:
    """One file; None if the model does not have it."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        path = Path(hf_hub_download(source.hub_id, name, revision=revision))
    except GatedRepoError as error:
        why = "access is given on request, and your login (`hf auth login`) does not have it yet"
        raise PermissionError(by_hand(source, why)) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"{source.page} has no revision {revision!r}.") from error
    except RepositoryNotFoundError as error:
        why = "the hub has no such model, or not for your login (`hf auth login`)"
        raise FileNotFoundError(by_hand(source, why)) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ConnectionError(by_hand(source, str(error))) from error
    except EntryNotFoundError:
        return None
    except HfHubHTTPError as error:
        raise ConnectionError(by_hand(source, str(error))) from error
    require_whole(path)
    return path


def reachable() -> bool:
    """Whether the hub, or the proxy on the way to it, takes a connection.

    Looking up its name may hang, so it waits aside.
    """
    if is_offline():
        return False
    answered = threading.Event()
    thread = threading.Thread(target=_connect, args=(*_way_out(), answered), daemon=True)
    thread.start()
    thread.join(CONNECT_S)
    return answered.is_set()


def _connect(host: str, port: int, answered: threading.Event) -> None:
    try:
        with socket.create_connection((host, port), timeout=CONNECT_S):
            answered.set()
    except OSError:
        return


def _way_out() -> tuple[str, int]:
    """Host and port of the first hop to the hub."""
    from huggingface_hub import constants

    endpoint = urllib.parse.urlsplit(constants.ENDPOINT)
    proxies = {} if urllib.request.proxy_bypass(endpoint.netloc) else urllib.request.getproxies()
    address = proxies.get(endpoint.scheme) or proxies.get("all") or constants.ENDPOINT
    hop = urllib.parse.urlsplit(address if "//" in address else f"//{address}")
    return hop.hostname or endpoint.netloc, hop.port or (80 if hop.scheme == "http" else 443)
