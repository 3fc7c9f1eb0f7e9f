"""A slide that can be walked through in the browser."""

from __future__ import annotations

import html
import os
import sys
import webbrowser
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sthist._messages import listed
from sthist._sample.elements import region_geometry
from sthist._sample.verbs import opened
from sthist._tables.genes import closest
from sthist.pl._view.server import Server, Site
from sthist.pl._view.slide import CMAPS
from sthist.pl._view.watch import Watched

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spatialdata import SpatialData

PORT, PORTS = 8765, 40
"""The first port that is tried where none is asked for, and how many."""


class View:
    """A viewer that is open; what :func:`sthist.pl.view` returns.

    It is closed at the end of a ``with`` block, and with the program. In a notebook it shows itself.
    """

    def __init__(self, server: Server, watched: Watched, name: str) -> None:
        self._server, self._watched, self._name = server, watched, name

    @property
    def url(self) -> str:
        """The address of the page, with the token that every request needs."""
        return self._server.url

    @property
    def port(self) -> int:
        """The port at which it serves."""
        return int(self._server.server_address[1])

    def open(self) -> bool:
        """Open the page in a browser; whether there is one with windows."""
        return _open(self.url)

    def refresh(self) -> None:
        """Read the sample again, after it has been changed; open pages follow within seconds."""
        self._watched.reload()

    def close(self) -> None:
        """End the server; open pages show no more tiles."""
        self._server.close()

    def wait(self) -> None:
        """Serve until Ctrl-C."""
        try:
            while self._server.is_open:
                self._server._thread.join(0.5)
        except KeyboardInterrupt:
            pass
        finally:
            self.close()

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"View of {self._name} at {self.url}" if self._server.is_open else f"View of {self._name}, closed"

    def _repr_html_(self) -> str:
        if not self._server.is_open:
            return f"<p>{html.escape(repr(self))}</p>"
        address = html.escape(self.url, quote=True)
        return (
            f'<iframe src="{address}" width="100%" height="640" style="border: 1px solid #888"></iframe>'
            f'<p><a href="{address}" target="_blank" rel="noreferrer">Open in a window of its own</a></p>'
        )


def view(
    sdata: SpatialData | str | os.PathLike[str],
    color: str | None = None,
    *,
    table: str | None = None,
    layer: str | None = None,
    genes: Sequence[str] | None = None,
    images: Sequence[str] | None = None,
    within: Any = None,
    cmap: str = "viridis",
    vmin: float | None = None,
    vmax: float | None = None,
    port: int | None = None,
    open_browser: bool = True,
    block: bool = False,
) -> View:
    """Walk through a slide in the browser: its images side by side, cells in colours, molecules as dots.

    A small server on this machine cuts tiles out of the sample as they are looked at, and a page of its own shows them;
    nothing is copied, and nothing comes from the network. Only those who have the address, which holds a random token,
    can see it, and only from this machine. What the arguments choose is shown at first; all can be changed in the
    page.

    Parameters
    ----------
    sdata
        One sample, or the path of its store; its images registered in ``um``.
    color
        What cells, spots or tiles are coloured by: a column of ``obs``, a gene, or ``"key:column"`` of ``obsm``.
    table
        Key of the table that has ``color``.
    layer
        Layer with the expression of a gene; ``X`` by default.
    genes
        Genes whose molecules are shown as dots.
    images
        Keys of the images that are shown, in this order; all that have a scale by default, nuclear stain and H&E first.
    within
        What is in view at first: a box (x0, y0, x1, y1) in µm, a polygon, or the key of shapes; the whole slide by
        default.
    cmap
        Colour map of numbers.
    vmin, vmax
        Limits of numbers; by default the least and the 99.5th percentile.
    port
        Port at which the page is served; by default 8765 or, where that is taken, the next one that is free.
    open_browser
        Open the page, where there is a screen. In a notebook, the viewer shows itself in place of that.
    block
        Serve until Ctrl-C. Otherwise the viewer is served beside what you go on to do, until it is closed.

    Returns
    -------
    The viewer: its address ``url`` and ``port``; ``open()`` opens the page, ``refresh()`` reads the sample again,
    ``wait()`` serves until Ctrl-C, ``close()`` ends it, as the end of a ``with`` block does.

    Raises
    ------
    KeyError
        If there is no such column, gene, table, layer, image or colour map; the closest is named.
    ValueError
        If several tables have ``color``, or nothing can be shown.
    OSError
        If the port that is asked for is taken.

    Examples
    --------
    >>> import sthist
    >>> sdata = sthist.datasets.toy(size_um=200)
    >>> with sthist.pl.view(sdata, "EPCAM", genes=["COL1A1"], open_browser=False) as viewer:
    ...     viewer.url.startswith("http://127.0.0.1:")
    True
    """
    if port is not None and (isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 65536):
        raise ValueError(f"port is {port!r}; it is a whole number from 0 to 65535, 0 for any that is free.")
    _require_cmap(cmap)
    if isinstance(sdata, Mapping):
        raise TypeError(f"view takes one sample, not a mapping of {len(sdata)}: call it for each.")
    images, genes = ([each] if isinstance(each, str) else each for each in (images, genes))
    watched = Watched(lambda: opened(sdata, tables=False), images)
    slide = watched.slide
    start: dict[str, Any] = {"genes": list(genes or ())}
    for gene in start["genes"]:
        if gene not in slide.genes:
            where = f"the {len(slide.genes)} genes of the molecules" if slide.genes else "molecules: there are none"
            raise KeyError(f"Gene {gene!r} is not among {where}.{closest(gene, slide.genes)}")
    if color is not None:
        source = slide.settle(color, table, layer)
        slide.colouring(source.group, source, vmin=vmin, vmax=vmax, cmap=cmap)
        start["color"] = source._asdict() | {"cmap": cmap, "vmin": vmin, "vmax": vmax}
    elif table is not None or layer is not None:
        raise ValueError("table= and layer= say where color= is found: pass color=, too.")
    if within is not None:
        start["within"] = list(region_geometry(slide.sdata, within).bounds)
    name = "a sample in memory" if slide.sdata.path is None else Path(slide.sdata.path).name
    server = _serve(Site(watched, name, start), port)
    viewer = View(server, watched, name)
    if open_browser and not _in_notebook():
        viewer.open()
    if block:
        viewer.wait()
    return viewer


def _require_cmap(cmap: str) -> None:
    import matplotlib as mpl

    if cmap not in mpl.colormaps:
        raise KeyError(f"There is no colour map {cmap!r}; such are {listed(CMAPS)}.{closest(cmap, mpl.colormaps)}")


def _serve(site: Site, port: int | None) -> Server:
    """A server at the port that is asked for, or at the next one that is free."""
    if port is not None:
        try:
            return Server(site, port)
        except OSError as error:
            raise OSError(
                f"Port {port} cannot be had ({error.strerror}): another program may serve there. Pass another port=, "
                "or none to take the next one that is free."
            ) from None
    for each in range(PORT, PORT + PORTS):
        try:
            return Server(site, each)
        except OSError:
            continue
    return Server(site, 0)


def _in_notebook() -> bool:
    kernel = sys.modules.get("ipykernel")
    shell = sys.modules.get("IPython")
    return kernel is not None and shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"


def _open(url: str) -> bool:
    """Open a browser with windows, if there is one; a browser of the terminal would stop the program."""
    windows = sys.platform in ("win32", "darwin") or any(
        os.environ.get(each) for each in ("DISPLAY", "WAYLAND_DISPLAY")
    )
    if not windows:
        return False
    try:
        return webbrowser.open(url)
    except (webbrowser.Error, OSError):
        return False
