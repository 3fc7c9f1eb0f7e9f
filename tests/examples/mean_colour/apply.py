"""Mean colours of tiles, and the verb that predicts a number for each."""

import numpy as np
from examples.mean_colour.model import MeanColour

from sthist import _store
from sthist._sample.samples import over_samples
from sthist._tables.find import require_free
from sthist._tables.rows import write_columns
from sthist.tiles import TileLoader, TileReader, TileSpec
from sthist.tiles._images.image import open_he
from sthist.tiles._laid_tiles import laid_tiles
from sthist.tiles._spec import same_scale


def read_colours(sdata, regions, meant=None):
    """Mean colour of each tile, (n, 3) from 0 to 1, with their table and their spec, which is to be the one meant."""
    table, spec = laid_tiles(sdata, regions)
    if meant is not None and not same_scale(spec, meant):
        raise ValueError(f"The tiles {regions!r} are {spec}, and {meant} is needed. Lay such tiles with pp.tiles.")
    colours = np.empty((len(table), 3), np.float32)
    for index, tiles in TileLoader(TileReader.from_image(open_he(sdata), spec, fill=255), table.obsm["spatial"]):
        colours[index] = tiles.mean((1, 2)) / 255
    return colours, table, spec


@over_samples
def mean_colour(data, model, *, regions="tiles", key_added="mean_colour", overwrite=False):
    """Write what a model, or the one in a folder, predicts for each tile to a column of the tiles' table."""
    model = model if isinstance(model, MeanColour) else MeanColour.load(model)
    colours, table, _ = read_colours(data, regions, TileSpec(model.config.size_um, model.config.px))
    require_free(table, f"Table '{regions}_table'", [key_added], overwrite=overwrite)
    made = _store.provenance("mean_colour", model=model.system, report=model.config.report)
    write_columns(data, f"{regions}_table", table, key_added, made, obs={key_added: model.predict(colours)})
