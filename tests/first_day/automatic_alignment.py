import sthist

sdata = sthist.datasets.toy(size_um=400)
sthist.pp.align(sdata, "he", matrix="auto", overwrite=True)
sthist.pl.alignment(sdata, save="figure.png")
