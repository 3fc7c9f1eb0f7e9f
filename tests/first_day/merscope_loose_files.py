import sthist

sdata = sthist.io.assemble({"dapi": "dapi_z0.jpg", "polyT": "polyT_z0.jpg"}, mpp=0.10863, points="transcripts.parquet")
sthist.tl.virtual_he(sdata, mpp=0.5)
sthist.pl.virtual_he(sdata, save="figure.png")
