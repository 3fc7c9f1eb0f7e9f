import sthist

section, other = sthist.datasets.toy(size_um=600), sthist.datasets.toy(size_um=300, seed=1)
sthist.pp.tiles(section, size_um=64, px=64, sampling="fps", n_tiles=60)
training = {"epochs": 2, "steps_per_epoch": 10, "batch_size": 4}
model = sthist.tl.train_virtual_he(section, "small", folder="model", training=training)
sthist.tl.virtual_he(other, "model")
sthist.pl.virtual_he(other, save="figure.png")
