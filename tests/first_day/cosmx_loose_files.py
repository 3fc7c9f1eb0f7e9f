import sthist

files = {"points": "fov2_transcripts.parquet", "labels": "fov2_cell_labels.tif"}
channels = {"stain": ["membrane", "PanCK", "DAPI"]}
sdata = sthist.io.assemble({"stain": "fov2_composite.jpg"}, mpp=0.18, channels=channels, **files)
sthist.tl.virtual_he(sdata)
sthist.pl.virtual_he(sdata, save="figure.png")
