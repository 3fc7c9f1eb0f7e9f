import sthist

sdata = sthist.datasets.toy(size_um=800)
sthist.pp.tiles(sdata, size_um=32, px=64, sampling="fps", n_tiles=400)
sthist.pp.embed(sdata, "morphology")
sthist.pp.label_regions(sdata, "tiles", by="regions")
annotator = sthist.tl.train_annotator(sdata, "label", split="block")
sthist.tl.heatmap(sdata, annotator)
sthist.pl.score_map(sdata, "heatmap", save="figure.png")
