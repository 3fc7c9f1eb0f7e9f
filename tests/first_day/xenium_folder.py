import sthist

sdata = sthist.io.xenium("outs")
sthist.tl.virtual_he(sdata)
sthist.pl.virtual_he(sdata, save="figure.png")
sthist.io.export_ome_tiff(sdata, "virtual_he", "virtual_he.ome.tif")
