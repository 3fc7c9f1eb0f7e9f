import sthist
from sthist.cli.commands import main

with open("samples.csv", "w") as table:
    print("sample,path,platform", "first,outs,xenium", "second,outs_2,xenium", sep="\n", file=table)
main(["run", "tl.virtual_he", "samples.csv", "--out", "results"])
sthist.pl.virtual_he("results/second.zarr", save="figure.png")
