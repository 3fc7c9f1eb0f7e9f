"""Every table that a verb writes goes into scanpy and squidpy as it is.

A verb that writes tables adds a line to ``MAKERS``: a function from a temporary folder to a sample, all tables of which
are tested.
"""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import realdata
import research
import spatialdata as sd
import vendor

import sthist


def toy(**kwargs):
    return lambda _: sthist.datasets.toy(**({"size_um": 300} | kwargs))


def simulated(_):
    sample = sthist.datasets.toy(size_um=200)
    he = sthist.tiles.read_region(sample, "he", (0, 0, 200, 200), mpp=0.5, fill=255)
    return sthist.datasets.simulate_hrst(he, mpp=0.5)


def with_tiles(_):
    sdata = sthist.datasets.toy(size_um=300)
    sthist.pp.tissue(sdata)
    sthist.pp.tiles(sdata, size_um=32, px=64)
    return sdata


def summed(_):
    sdata = sthist.datasets.toy(size_um=300)
    sthist.pp.aggregate(sdata, "nucleus_boundaries")
    sthist.pp.aggregate(sdata, bin_um=20)
    sthist.pp.aggregate(sdata, bin_um=50, of="cells")
    return sdata


def labelled(path):
    """Labels of tiles, and from them of cells; regions that had no table."""
    sdata = with_tiles(path)
    sthist.pp.label_regions(sdata, "tiles", "regions")
    sthist.tl.transfer_labels(sdata, "tiles", "table")
    sthist.pp.label_regions(sdata, "nucleus_boundaries", "table", label="cell_type")
    return sdata


def microarray(_):
    """Twenty cores, found by cells of which nothing else is known."""
    x, y = np.meshgrid(np.arange(0, 600, 8.0), np.arange(0, 480, 8.0))
    inside = np.hypot(x % 120 - 60, y % 120 - 60) < 40
    obs = pd.DataFrame({"x_um": x[inside], "y_um": y[inside]}, index=[f"cell{i}" for i in range(inside.sum())])
    sdata = sthist.io.assemble(table=ad.AnnData(np.ones((len(obs), 1), np.float32), obs=obs))
    sthist.pp.tma(sdata, diameter_um=80)
    del sdata.tables["table"]
    return sdata


def read_back(tmp_path):
    """Genes and tiles written to a store."""
    with_tiles(tmp_path).write(tmp_path / "toy.zarr")
    sthist.pp.genes(sd.read_zarr(tmp_path / "toy.zarr"))
    return sd.read_zarr(tmp_path / "toy.zarr")


def embedded(_):
    """Nuclei that had no table."""
    sdata = sthist.datasets.toy(size_um=300)
    spec = sthist.tiles.TileSpec(size_um=16, px=32)
    sthist.pp.embed(sdata, "morphology", regions="nucleus_boundaries", spec=spec, progress=False)
    return sdata


def hest(path):
    research.hest_copy(path, technology="Xenium", parts=True)
    return sthist.io.hest(path, ids="TENX1")


def stimage(path):
    research.stimage_copy(path)
    return sthist.io.stimage(path, ids="Human_Breast_ST_A1")


def legacy_st(path):
    files, _ = research.her2st_files(path)
    return sthist.io.legacy_st(files["counts"], spots=files["spots"], image=files["image"])


MAKERS = {
    "datasets.toy xenium": toy(),
    "datasets.toy visium": toy(kind="visium", size_um=600),
    "datasets.toy cosmx": toy(kind="cosmx"),
    "datasets.toy tma": toy(kind="tma", size_um=600),
    "datasets.simulate_hrst": simulated,
    "pp.tiles": with_tiles,
    "pp.aggregate": summed,
    "pp.label_regions, tl.transfer_labels": labelled,
    "pp.embed": embedded,
    "pp.tma": microarray,
    "pp.genes, read back": read_back,
    "io.cosmx": lambda path: sthist.io.cosmx(
        vendor.cosmx_folder(path / "Mini", **vendor.cosmx_sample(), mpp=0.12), mpp=0.12
    ),
    "io.merscope": lambda path: sthist.io.merscope(vendor.merscope_folder(path / "region_0")[0]),
    "io.visium": lambda path: sthist.io.visium(vendor.visium_folder(path / "outs")[0]),
    "io.visium_hd": lambda path: sthist.io.visium_hd(vendor.visium_hd_folder(path / "outs"), bin_size=None),
    "io.hest": hest,
    "io.stimage": stimage,
    "io.legacy_st": legacy_st,
    "io.visium, real": lambda _: sthist.io.visium(realdata.folder("squidpy_visium") / "human_heart_100spots"),
    "io.xenium, real": lambda _: realdata.xenium_ileum_tiny(),
    "io.assemble, real Xenium": lambda _: realdata.xenium_breast_dapi_crop(),
    "io.assemble, real MERSCOPE": lambda _: realdata.merscope_mouse_brain(),
    "io.assemble, real CosMx": lambda _: realdata.cosmx_lung12(),
}


SLOW = {"io.assemble, real Xenium", "io.assemble, real MERSCOPE"}  # CosMx is the same call


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in MAKERS]
)
def sample(request, tmp_path_factory):
    return MAKERS[request.param](tmp_path_factory.mktemp("sample"))


def centroids_um(sdata, region):
    """Of shapes or labels, by instance."""
    if region in sdata.shapes:
        centres = sd.transform(sdata[region], to_coordinate_system="um").geometry.centroid
        return pd.DataFrame({"x": centres.x, "y": centres.y})
    return sd.get_centroids(sdata[region], coordinate_system="um").compute()[["x", "y"]]


def test_tables_are_linked_and_placed(sample):
    """Each row has its region, and lies in it, in µm."""
    for key, adata in sample.tables.items():
        spatial = adata.obsm["spatial"]
        assert isinstance(spatial, np.ndarray), key
        assert spatial.shape == (adata.n_obs, 2), key
        assert spatial.dtype.kind == "f", key
        assert np.isfinite(spatial).all(), key
        link = adata.uns["spatialdata_attrs"]
        regions = [link["region"]] if isinstance(link["region"], str) else link["region"]
        assert set(adata.obs[link["region_key"]]) == set(regions), key
        for region in regions:
            rows = (adata.obs[link["region_key"]] == region).to_numpy()
            instances = adata.obs[link["instance_key"]][rows]
            assert instances.is_unique, key
            matched = sd.match_table_to_element(sample, element_name=region, table_name=key)
            assert set(matched.obs_names) == set(adata.obs_names[rows]), key
            centres = centroids_um(sample, region).loc[instances].to_numpy()
            assert np.median(np.linalg.norm(centres - spatial[rows], axis=1)) < 2, key


@pytest.mark.filterwarnings(
    # squidpy, when it is imported: its docstrings name arguments that its functions no longer have.
    "ignore:.* is not a valid key!:SyntaxWarning",
    # squidpy 1.8 names its successors, which squidpy 1.6 does not have.
    "ignore:Calling `spatial_neighbors` is deprecated:FutureWarning",
    # scanpy, where more cells are alike than a cell has neighbours, as cells without counts are.
    "ignore:Changing the sparsity structure of a csr_matrix is expensive",
)
def test_scanpy_and_squidpy_take_them(sample):
    """From counts to clusters, their markers and their neighbourhoods, with nothing done in between."""
    for key, adata in list(sample.tables.items()):
        if adata.X is None:  # tiles: no genes, and all that scanpy can use is in obsm
            cluster(adata, use_rep="spatial")
        else:
            sthist.pp.genes(sample, table=key, overwrite=True)
            adata = sample[key]
            analyse_genes(adata)
        analyse_space(adata)


def cluster(adata, **kwargs):
    import scanpy as sc

    sc.pp.neighbors(adata, n_neighbors=min(10, adata.n_obs - 1), **kwargs)
    sc.tl.leiden(adata, flavor="igraph", n_iterations=2, directed=False)
    assert adata.obs["leiden"].notna().all()
    assert adata.obs["leiden"].nunique() > 1


def analyse_genes(adata):
    import scanpy as sc

    sc.pp.pca(adata, n_comps=min(5, adata.n_vars - 1, adata.n_obs - 1))
    assert np.isfinite(adata.obsm["X_pca"]).all()
    cluster(adata)
    sizes = adata.obs["leiden"].value_counts()
    groups = [group for group in sizes.index if sizes[group] > 1]
    sc.tl.rank_genes_groups(adata, "leiden", groups=groups)
    assert set(sc.get.rank_genes_groups_df(adata, None)["names"]) <= set(adata.var_names)
    if adata.n_vars > 2:  # the miniature folders have no third gene to compare with
        sc.tl.score_genes(adata, list(adata.var_names[: adata.n_vars // 10]))
        assert np.isfinite(adata.obs["score"]).all()


def analyse_space(adata):
    import squidpy as sq

    n_neighs = min(6, adata.n_obs - 1)
    sq.gr.spatial_neighbors(adata, coord_type="generic", n_neighs=n_neighs)
    np.testing.assert_array_equal(np.diff(adata.obsp["spatial_connectivities"].indptr), n_neighs)
    # The largest cluster and the rest: for each number of clusters squidpy compiles a function, which takes seconds.
    adata.obs["largest"] = (adata.obs["leiden"] == "0").astype(str).astype("category")
    sq.gr.nhood_enrichment(adata, "largest", n_perms=20, seed=0, show_progress_bar=False)
    assert adata.uns["largest_nhood_enrichment"]["zscore"].shape == (2, 2)


def test_the_coordinates_are_micrometres():
    """Squidpy's distances are those of a Visium lattice: 100 µm."""
    sdata = sthist.datasets.toy("visium", size_um=600)
    spatial = pd.DataFrame(sdata["table"].obsm["spatial"])
    distances = np.linalg.norm(spatial.to_numpy()[:, None] - spatial.to_numpy()[None], axis=2)
    np.testing.assert_allclose(np.sort(distances, axis=1)[:, 1], 100, rtol=1e-3)
