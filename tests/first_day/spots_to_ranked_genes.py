import anndata as ad

import sthist

spots, where = ad.read_h5ad("C3_counts.h5ad"), {"xy": ("pixel_x", "pixel_y"), "unit": "px", "spot_diameter_um": 100}
sdata = sthist.io.assemble({"he": "C3.jpg"}, mpp=0.6874, table=spots, **where)
sthist.pp.tiles(sdata, size_um=112, px=224, sampling="regions")
sthist.pp.embed(sdata, "morphology", regions="tiles")
model = sthist.tl.train_expression(sdata, "ridge", split="block")
sthist.pl.gene_ranking(model, save="figure.png")
