"""Run a model over a canvas: read, predict, blend, write."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sthist._settings import settings
from sthist.tiles._blocks.blend import TileBlender
from sthist.tiles._blocks.estimate import require_space
from sthist.tiles._blocks.resumable import record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from shapely.geometry.base import BaseGeometry

    from sthist.tiles._blocks.canvas import Canvas
    from sthist.tiles._blocks.resumable import BlockWorker, Resumable
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
    blender = TileBlender(
        readers, predict, canvas.layout, overlap=overlap, batch_size=batch_size, concurrent=concurrent, within=within
    )
    require_space(blender, canvas)
    run_pending(blender, canvas, client=client, progress=progress, threads=threads)
    canvas.finish()


def run_pending(
    worker: BlockWorker,
    work: Resumable,
    *,
    client: Any = None,
    progress: bool | None = None,
    threads: int | None = None,
) -> None:
    """Compute and record the blocks of some work that are not done, here or on a cluster."""
    pending, n_threads = work.pending(), threads or max(2, settings.threads)
    with _progress(work, pending, progress) as advance:
        if client is not None and pending:
            from sthist.tiles._blocks.dask_run import run_on_cluster

            run_on_cluster(client, worker, work, pending, advance)
        elif n_threads == 1:
            # Here, and not on a thread: memory that a thread asks for is given back to the system each time.
            for block in pending:
                advance(record(worker, work, block))
        elif pending:
            with ThreadPoolExecutor(n_threads) as pool:
                try:
                    for future in as_completed([pool.submit(record, worker, work, block) for block in pending]):
                        advance(future.result())
                finally:  # also on Ctrl-C: what is running ends, what is waiting does not start
                    pool.shutdown(cancel_futures=True)


@contextmanager
def _progress(work: Resumable, pending: list[Any], show: bool | None) -> Iterator[Callable[[Any], None]]:
    """A bar over what is to be done, and the function that moves it on by a block."""
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Speed(ProgressColumn):
        """Units per second, as measured over the last half minute."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.1f} {work.unit}/s" if task.speed else "", style="progress.data.speed")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn(f"{{task.completed:.1f}}/{{task.total:.1f}} {work.unit}"),
        Speed(),
        TimeRemainingColumn(),
    )
    total = sum(map(work.amount, work.blocks()))
    with Progress(*columns, disable=not (settings.progress if show is None else show)) as bar:
        task = bar.add_task(work.name, total=total)
        bar.update(task, completed=total - sum(map(work.amount, pending)))
        yield lambda block: bar.advance(task, work.amount(block))
