import sthist

sdata = sthist.datasets.toy(size_um=500)
immune = {"T cell": ["CD3D", "CD3E", "CD8A"], "B cell": ["MS4A1", "CD79A", "CD19"]}
others = {"duct": ["EPCAM", "KRT8", "CDH1"], "stroma": ["COL1A1", "DCN", "LUM"]}
sthist.tl.cell_types(sdata, immune | others, key_added="call")
sthist.tl.niches(sdata, "call")
sthist.pl.cells(sdata, ["call", "niche"], save="figure.png")
