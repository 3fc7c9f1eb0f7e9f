"""Run a model over a canvas: read, predict, blend, write."""

from __future__ import annotations

from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

from sthist._settings import settings
from sthist.tiles._blocks.blend import BlockPainter
from sthist.tiles._blocks.estimate import require_space

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from shapely.geometry.base import BaseGeometry

    from sthist.tiles._blocks.canvas import Canvas
    from sthist.tiles._blocks.resumable import Painter, Resumable
    from sthist.tiles._images.reader import TileReader


def map_tiles(
    readers: Sequence[TileReader],
    predict: Callable[..., np.ndarray],
    canvas: Canvas,
    *,
    overlap: float = 0.25,
    batch_size: int = 16,
    concurrent: bool = False,
    within: BaseGeometry | None = None,
    client: Any = None,
    progress: bool | None = None,
    threads: int | None = None,
) -> None:
    """Fill the pending blocks of a canvas with what a model makes of the tiles under it.

    The tiles of a block run in fixed batches and are blended in memory, in a fixed order, with raised-cosine ramps
    over their overlap; tiles on a border are computed for each block. So the result does not depend on what was done
    before, by whom, or in which order.

    Parameters
    ----------
    readers
        What the model sees, one or more, all of one :class:`TileSpec` whose µm/px is the canvas's.
    predict
        Takes one array of (n, px, px, c) per reader and returns (n, px, px, 3) uint8.
    canvas
        Where the result goes. It is finished when all blocks are done.
    overlap
        Part of a tile's side that it shares with the next one, less than 1/2.
    batch_size
        Tiles per call of ``predict``.
    concurrent
        ``predict`` may run in several threads at once (kernels on a CPU); otherwise, while one block is predicted,
        others are read and written.
    within
        A polygon in µm. Outside of it the canvas stays white, and blocks that do not touch it are skipped.
    client
        A ``dask.distributed.Client``, on whose workers the blocks run; in this process by default. ``predict`` and the
        readers are pickled (with cloudpickle) into the canvas's folder, which all workers must see under the same path.
    progress
        Show a bar with megapixels per second and the time left.
    threads
        Blocks at a time in this process; by default at least two, so that one is read while another is predicted.

    Examples
    --------
    Copy an image onto a canvas:

    >>> import tempfile, pathlib, sthist
    >>> sdata = sthist.datasets.toy(size_um=200)
    >>> reader = sthist.tiles.TileReader(sdata, "he", sthist.tiles.TileSpec(size_um=64, px=128))
    >>> folder = pathlib.Path(tempfile.mkdtemp()) / "canvas"
    >>> canvas = sthist.tiles.Canvas(folder, "copy", extent_um=(0, 0, 200, 200), mpp=0.5, fingerprint={})
    >>> sthist.tiles.map_tiles([reader], lambda tiles: tiles, canvas, progress=False)
    >>> canvas.pending()
    []
    """
    painter = BlockPainter(
        readers, predict, canvas.layout, overlap=overlap, batch_size=batch_size, concurrent=concurrent, within=within
    )
    require_space(painter, canvas)
    paint_pending(painter, canvas, client=client, progress=progress, threads=threads)
    canvas.finish()


def paint_pending(
    painter: Painter, work: Resumable, *, client: Any = None, progress: bool | None = None, threads: int | None = None
) -> None:
    """Paint the blocks of some work that are not done, here or on a cluster."""
    with _Progress(work, progress) as bar:
        if client is None:
            _run_here(painter, work, bar.advance, threads or max(2, settings.threads))
        elif work.pending():
            from sthist.tiles._blocks.dask_run import run_on_cluster

            run_on_cluster(client, painter, work, bar.advance)


def _run_here(painter: Painter, work: Resumable, advance: Callable[[Any], None], threads: int) -> None:
    """Paint the pending blocks on the threads of this process."""

    def run(block: Any) -> None:
        work.write(block, painter.paint(block))
        advance(block)

    if threads == 1:
        # Here, and not on a thread: memory that a thread of its own asks for is given back to the system each time.
        for block in work.pending():
            run(block)
        return
    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(run, block) for block in work.pending()]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:  # also on Ctrl-C: what is running ends, what is waiting does not start
            for future in futures:
                future.cancel()
        for future in futures:
            if not future.cancelled():
                future.result()


class _Progress:
    """A bar over what is to be done; nothing is shown where the settings say so."""

    def __init__(self, work: Resumable, show: bool | None) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn(f"{{task.completed:.1f}}/{{task.total:.1f}} {work.unit}"),
            _speed_column(work.unit),
            TimeRemainingColumn(),
            disable=not (settings.progress if show is None else show),
        )
        self._amount = work.amount
        total = sum(map(work.amount, work.blocks()))
        self._task = self._bar.add_task(work.name, total=total)
        self._bar.update(self._task, completed=total - sum(map(work.amount, work.pending())))

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, block: Any) -> None:
        self._bar.advance(self._task, self._amount(block))


def _speed_column(unit: str) -> Any:
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class Speed(ProgressColumn):
        """Units per second, as measured over the last half minute."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.1f} {unit}/s" if task.speed else "", style="progress.data.speed")

    return Speed()
