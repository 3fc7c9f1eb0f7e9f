import scanpy as sc

import sthist

sdata = sthist.io.slide("CMU-1-Small-Region.svs")
sthist.pp.tissue(sdata)
sthist.pp.tiles(sdata, size_um=56, px=112)
sthist.pp.embed(sdata, "morphology")
sc.pp.neighbors(sdata["tiles_table"], use_rep="X_morphology")
sc.tl.leiden(sdata["tiles_table"], resolution=0.5, flavor="igraph", n_iterations=2)
sthist.pl.tiles_on_slide(sdata, "leiden", save="figure.png")
