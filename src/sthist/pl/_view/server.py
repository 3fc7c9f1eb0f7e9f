"""The server of the viewer: on this machine alone, for those who have its token, and to be read only."""

from __future__ import annotations

import hmac
import json
import math
import os
import secrets
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from sthist._settings import logger
from sthist.pl._view.colours import Source
from sthist.pl._view.grid import Encoded, NoTile
from sthist.pl._view.molecules import Dots
from sthist.pl._view.pictures import Channel
from sthist.pl._view.slide import STYLES

if TYPE_CHECKING:
    from collections.abc import Callable

    from sthist.pl._view.watch import Watched

HOST = "127.0.0.1"
LOOPBACK = {"127.0.0.1", "localhost", "[::1]"}
PAGE = Path(__file__).with_name("page")
MIMES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".svg": "image/svg+xml",
}
OPENSEADRAGON_STYLE = "sha256-9xTiqzfwFaL2SGb1rmr8gysEwVVjIvqWAgmZgqFqpEE="
"""The one style sheet that OpenSeadragon adds to the page itself."""

POLICY = (
    f"default-src 'none'; script-src 'self'; style-src 'self' '{OPENSEADRAGON_STYLE}'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'"
)
MOST_GENES, LONGEST = 40, 16_000
MOST_DOTS_PX = 40.0
IDLE_SECONDS = 120


class Refused(ValueError):
    """A request that cannot be understood."""


class Query:
    """The parameters of a request."""

    def __init__(self, text: str) -> None:
        self._values = parse_qs(text, keep_blank_values=True, max_num_fields=500)

    def text(self, name: str) -> str | None:
        """A parameter; None where it is not given, or empty."""
        return self._values.get(name, [""])[-1] or None

    def texts(self, name: str) -> list[str]:
        """A parameter that may be given several times."""
        return self._values.get(name, [])

    def number(self, name: str) -> float | None:
        """A parameter that is a finite number."""
        text = self.text(name)
        return None if text is None else as_number(text, name)

    def needed(self, name: str) -> float:
        """A number that has to be given."""
        number = self.number(name)
        if number is None:
            raise Refused(f"{name} is missing.")
        return number

    def source(self, group: str) -> Source | None:
        """What regions are coloured by."""
        kind, name = self.text("kind"), self.text("name")
        if kind is None or name is None:
            return None
        if kind not in ("obs", "gene", "obsm"):
            raise Refused(f"kind is {kind!r}; it is obs, gene or obsm.")
        return Source(group, kind, name, self.text("layer"))  # type: ignore[arg-type]

    def limits(self) -> dict[str, Any]:
        """Limits, colour map, and classes that are not shown."""
        hidden = self.text("hide")
        return {
            "vmin": self.number("vmin"),
            "vmax": self.number("vmax"),
            "cmap": self.text("cmap"),
            "hidden": frozenset(as_place(each, "hide") for each in hidden.split(".")) if hidden else frozenset(),
        }


class Site:
    """What each path below the token answers."""

    def __init__(self, watched: Watched, name: str, start: dict[str, Any]) -> None:
        self._watched, self._name, self._start = watched, name, start
        self._pages = {each.name: each for each in PAGE.iterdir() if each.suffix in MIMES}
        self._answers: dict[str, Callable[[list[str], Query], Any]] = {
            "slide": self._slide,
            "state": lambda _, __: self._watched.state(),
            "reload": self._reload,
            "image": self._image,
            "limits": self._limits,
            "regions": self._regions,
            "molecules": self._molecules,
            "colours": self._colours,
            "find": self._find,
            "at": self._at,
        }

    def answer(self, path: str, query: str) -> Encoded:
        """The answer to a path below the token; a :class:`NoTile` where there is none."""
        parts = [unquote(part) for part in path.split("/")]
        if len(parts) == 1 and (parts[0] or "index.html") in self._pages:
            page = self._pages[parts[0] or "index.html"]
            return Encoded(page.read_bytes(), MIMES[page.suffix])
        if parts[0] not in self._answers:
            raise NoTile("There is nothing here.")
        found = self._answers[parts[0]](parts[1:], Query(query))
        return found if isinstance(found, Encoded) else _json(found)

    def _slide(self, _: list[str], __: Query) -> dict[str, Any]:
        start = {"name": self._name, "start": self._start, "version": self._watched.version}
        return self._watched.slide.describe() | start

    def _reload(self, _: list[str], __: Query) -> dict[str, Any]:
        self._watched.reload()
        return self._watched.state()

    def _image(self, parts: list[str], query: Query) -> Encoded:
        key, level, column, row = _tile(parts, 4)
        channels = [_channel(text) for text in query.texts("c")]
        return self._watched.slide.image_tile(key, level, column, row, channels)

    def _limits(self, parts: list[str], query: Query) -> dict[str, float]:
        if len(parts) != 2:
            raise NoTile("Limits are asked for by image and channel.")
        low, high = self._watched.slide.limits(parts[0], as_place(parts[1], "channel"))
        return {"low": low, "high": high}

    def _regions(self, parts: list[str], query: Query) -> Encoded:
        group, level, column, row = _tile(parts, 4)
        style = query.text("style") or "fill"
        if style not in STYLES:
            raise Refused(f"style is {style!r}; it is one of {STYLES}.")
        return self._watched.slide.region_tile(
            group, level, column, row, query.source(group), style=style, **query.limits()
        )

    def _molecules(self, parts: list[str], query: Query) -> Encoded:
        _, level, column, row = _tile(["", *parts], 4)
        genes = [_dots(text) for text in query.texts("g")]
        if not 0 < len(genes) <= MOST_GENES:
            raise Refused(f"{len(genes)} genes are asked for; 1 to {MOST_GENES} are shown at a time.")
        size = query.number("size") or 6.0
        return self._watched.slide.molecule_tile(level, column, row, genes, min(max(size, 1.0), MOST_DOTS_PX))

    def _colours(self, parts: list[str], query: Query) -> dict[str, Any]:
        if len(parts) != 1:
            raise NoTile("Colours are asked for by regions.")
        return self._watched.slide.colouring(parts[0], query.source(parts[0]), **query.limits()).describe()

    def _find(self, parts: list[str], query: Query) -> list[Any]:
        text = query.text("q") or ""
        if parts == ["molecules"]:
            return self._watched.slide.find_molecules(text)
        return [source._asdict() for source in self._watched.slide.find(text, query.text("group"))]

    def _at(self, _: list[str], query: Query) -> list[dict[str, Any]]:
        group = query.text("group")
        if group is not None and group not in self._watched.slide.groups:
            raise NoTile(f"There are no regions {group!r}.")
        source = None if group is None else query.source(group)
        return self._watched.slide.at(query.needed("x"), query.needed("y"), query.needed("mpp"), group, source)


def as_number(text: str, name: str) -> float:
    """A finite number."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise Refused(f"{name} is {text[:40]!r}; it is a number.")
    return number


def as_place(text: str, name: str) -> int:
    """A whole number from 0 on, of at most nine digits."""
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise NoTile(f"{name} is {text[:40]!r}; it is a whole number from 0 on.")
    return int(text)


def _tile(parts: list[str], n: int) -> tuple[str, int, int, int]:
    if len(parts) != n:
        raise NoTile("A tile is asked for by name, level, column and row.")
    level, column, row = (as_place(part, name) for part, name in zip(parts[1:], ("level", "x", "y"), strict=True))
    return parts[0], level, column, row


def _channel(text: str) -> Channel:
    """A channel as the page writes it: place, colour, and limits, if they are not the automatic ones."""
    place, _, rest = text.partition(":")
    colour, _, limits = rest.partition(":")
    low, _, high = limits.partition("~")
    if limits:
        return Channel(as_place(place, "c"), _colour(colour), as_number(low, "c"), as_number(high, "c"))
    return Channel(as_place(place, "c"), _colour(colour), 0.0, 0.0)


def _dots(text: str) -> Dots:
    colour, _, gene = text.partition(":")
    return Dots(gene, _colour(colour))


def _colour(text: str) -> tuple[int, int, int]:
    try:
        red, green, blue = bytes.fromhex(text)
    except ValueError:
        raise Refused(f"{text[:40]!r} is no colour; it is written as ff8000.") from None
    return red, green, blue


def _json(value: Any) -> Encoded:
    return Encoded(json.dumps(value, ensure_ascii=False, allow_nan=False).encode(), "application/json; charset=utf-8")


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "sthist", ""
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    timeout = IDLE_SECONDS
    server: Server

    def do_GET(self) -> None:
        """Answer, or say why not."""
        status, found = self._answered()
        self._send(status, found)

    do_HEAD = do_GET

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):  # whatever would change something
            return lambda: self._send(
                HTTPStatus.METHOD_NOT_ALLOWED, _json({"error": "This server is read only: GET and HEAD."})
            )
        raise AttributeError(name)

    def _answered(self) -> tuple[HTTPStatus, Encoded]:
        try:
            self._require_host()
            path, query = self._below_token()
            return HTTPStatus.OK, self.server.site.answer(path, query)
        except PermissionError as error:
            return HTTPStatus.FORBIDDEN, _json({"error": str(error)})
        except NoTile as error:
            return HTTPStatus.NOT_FOUND, _json({"error": str(error)})
        except KeyError as error:
            return HTTPStatus.NOT_FOUND, _json({"error": str(error.args[0])})
        except ValueError as error:
            return HTTPStatus.BAD_REQUEST, _json({"error": str(error)})
        except OSError as error:  # a store that is being changed, or is gone
            logger.warning("A request of the viewer failed: %s", error)
            return HTTPStatus.SERVICE_UNAVAILABLE, _json({"error": f"The store cannot be read: {error}"})
        except Exception as error:  # noqa: BLE001 the viewer goes on, and says what went wrong
            logger.exception("A request of the viewer failed.")
            return HTTPStatus.INTERNAL_SERVER_ERROR, _json({"error": f"{type(error).__name__}: {error}"})

    def _require_host(self) -> None:
        """Refuse requests that a name of someone else's led here."""
        host = self.headers.get("Host", "")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if name.lower() not in LOOPBACK:
            raise PermissionError("This server answers to 127.0.0.1 and localhost alone.")

    def _below_token(self) -> tuple[str, str]:
        parts = urlsplit(self.path)
        token, slash, rest = parts.path.lstrip("/").partition("/")
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            raise PermissionError("The address lacks the token: take the whole address that was printed.")
        if not slash or len(self.path) > LONGEST:
            raise NoTile("There is nothing here.")
        return rest, parts.query

    def _send(self, status: HTTPStatus, found: Encoded) -> None:
        self.send_response(status)
        self.send_header("Content-Type", found.mime)
        self.send_header("Content-Length", str(len(found.content)))
        kept = status == HTTPStatus.OK and found.mime.startswith("image/")
        self.send_header("Cache-Control", "private, max-age=3600" if kept else "no-store")
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
            self.close_connection = True  # a body that was sent is not read
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(found.content)

    def handle(self) -> None:
        """Answer all requests of a connection; a browser that goes away is no error."""
        try:
            super().handle()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def finish(self) -> None:
        """Send what is left, if there is someone to take it."""
        try:
            super().finish()
        except (ConnectionError, TimeoutError, ValueError):
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are of interest to those who debug; the token is not."""
        logger.debug("viewer: %s", (format % args).replace(self.server.token, "…"))


class Server(ThreadingHTTPServer):
    """Serves a site at the loopback address, in threads of its own."""

    daemon_threads = True
    allow_reuse_address = os.name != "nt"  # where it would let two programs listen at one port
    request_queue_size = 64

    def __init__(self, site: Site, port: int) -> None:
        super().__init__((HOST, port), Handler)
        self.site, self.token = site, secrets.token_urlsafe(24)
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The address, with the token."""
        return f"http://{HOST}:{self.server_address[1]}/{self.token}/"

    @property
    def is_open(self) -> bool:
        """Whether it serves."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Serve no more."""
        if self._thread.is_alive():
            self.shutdown()
            self._thread.join()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that break are no business of the user's."""
        logger.debug("A connection of the viewer broke.", exc_info=True)
