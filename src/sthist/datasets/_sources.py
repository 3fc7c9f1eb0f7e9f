"""Public data sets: where they are, and under which licence.

A size or a SHA-256 stands here only where the source itself publishes it; none does so far. Where an address is from is
said at each.
"""

from __future__ import annotations

from sthist.datasets._download import HUB_PAGES, RemoteFile, Source

CC_BY = "CC BY 4.0"
TENX = "https://cf.10xgenomics.com/samples/xenium"
TENX_S3 = "https://s3-us-west-2.amazonaws.com/10x.files/samples/xenium"
TENX_PAGES = "https://www.10xgenomics.com/datasets"
JANESICK = "Janesick et al., Nature Communications 2023, doi 10.1038/s41467-023-43458-x"
KUMAR = "Kumar et al., Nature 2023, doi 10.1038/s41586-023-06252-9"
MADISSOON = "Madissoon et al., Nature Genetics 2022, doi 10.1038/s41588-022-01243-4"


def _tenx(tissue: str, title: str, page: str, *urls: str, cite: str = "10x Genomics") -> Source:
    return Source(f"xenium_{tissue}", f"Xenium FFPE human {title}", CC_BY, page, tuple(map(RemoteFile, urls)), cite)


# Breast: output and H&E in the datasets module of InSituPy, these and the alignment in several public download scripts.
_BREAST = f"{TENX}/1.0.1/Xenium_FFPE_Human_Breast_Cancer_Rep1/Xenium_FFPE_Human_Breast_Cancer_Rep1"

XENIUM: dict[str, Source] = {
    "breast": _tenx(
        "breast",
        "breast cancer, replicate 1",
        "https://www.10xgenomics.com/products/xenium-in-situ/preview-dataset-human-breast",
        *(f"{_BREAST}_{end}" for end in ("outs.zip", "he_image.ome.tif", "he_imagealignment.csv")),
        cite=JANESICK,
    ),
    # Lung: ImperialCollegeLondon/ReCoDe-spatial-transcriptomics, README.
    "lung": _tenx(
        "lung",
        "lung cancer, immuno-oncology panel and custom genes",
        f"{TENX_PAGES}/ffpe-human-lung-cancer-data-with-human-immuno-oncology-profiling-panel-and-custom-add-on-1-standard",
        f"{TENX}/2.0.0/Xenium_V1_Human_Lung_Cancer_Addon_FFPE/Xenium_V1_Human_Lung_Cancer_Addon_FFPE_outs.zip",
    ),
    # Pancreas: the download script of SpatialFormer. The page of the set itself is not established; this is their list.
    "pancreas": _tenx(
        "pancreas",
        "pancreatic ductal adenocarcinoma, immuno-oncology panel",
        TENX_PAGES,
        f"{TENX}/2.0.0/Xenium_V1_Human_Ductal_Adenocarcinoma_FFPE/Xenium_V1_Human_Ductal_Adenocarcinoma_FFPE_outs.zip",
    ),
    # Brain: the datasets module of InSituPy.
    "brain": _tenx(
        "brain",
        "glioblastoma, immuno-oncology panel and custom genes",
        f"{TENX_PAGES}/ffpe-human-brain-cancer-data-with-human-immuno-oncology-profiling-panel-and-custom-add-on-1-standard",
        f"{TENX_S3}/2.0.0/Xenium_V1_Human_Brain_GBM_FFPE/Xenium_V1_Human_Brain_GBM_FFPE_outs.zip",
    ),
    # Liver: public loaders of this section (a Viash component), and the download script of SpatialFormer.
    "liver": _tenx(
        "liver",
        "liver cancer, multi-tissue panel",
        f"{TENX_PAGES}/human-liver-data-xenium-human-multi-tissue-and-cancer-panel-1-standard",
        f"{TENX}/1.9.0/Xenium_V1_hLiver_cancer_section_FFPE/Xenium_V1_hLiver_cancer_section_FFPE_outs.zip",
    ),
}

# CosMx: openpipeline (Lung5_Rep1), the tutorial of squidpy (Lung5_Rep2), a loader of Open Problems (Lung9_Rep1), and a
# public script that downloads all eight from this address.
COSMX_SAMPLES = ("Lung5_Rep1", "Lung5_Rep2", "Lung5_Rep3", "Lung6", "Lung9_Rep1", "Lung9_Rep2", "Lung12", "Lung13")
_NANOSTRING = "https://nanostring-public-share.s3.us-west-2.amazonaws.com/SMI-Compressed"
COSMX: dict[str, Source] = {
    sample: Source(
        f"cosmx_nsclc_{sample}",
        f"CosMx FFPE non-small-cell lung cancer, {sample}",
        "terms of use of NanoString (Bruker Spatial Biology), which its page states; the files name no licence",
        "https://brukerspatialbiology.com/products/cosmx-spatial-molecular-imager/ffpe-dataset/nsclc-ffpe-dataset/",
        (RemoteFile(f"{_NANOSTRING}/{sample}/{sample}+SMI+Flat+data.tar.gz"),),
        "He et al., Nature Biotechnology 2022, doi 10.1038/s41587-022-01483-z",
    )
    for sample in COSMX_SAMPLES
}

# The repository holds plain files; the archives of Zenodo record 4751624 are encrypted. GitHub's address of a branch.
HER2ST = Source(
    "her2st",
    "her2st, HER2-positive breast cancer, legacy Spatial Transcriptomics, 36 sections of 8 patients",
    f"{CC_BY} (as deposited in Zenodo record 4751624; the repository has no licence file)",
    "https://github.com/almaan/her2st",
    (RemoteFile("https://github.com/almaan/her2st/archive/refs/heads/master.zip", name="her2st-master.zip"),),
    "Andersson et al., Nature Communications 2021, doi 10.1038/s41467-021-26271-2",
)

# Mendeley Data's own address of version 5 as one archive, as in a public training pipeline.
STNET = Source(
    "stnet",
    "ST-Net, breast cancer, legacy Spatial Transcriptomics, 68 sections of 23 patients",
    CC_BY,
    "https://data.mendeley.com/datasets/29ntw7sh4r/5",
    (RemoteFile("https://data.mendeley.com/public-api/zip/29ntw7sh4r/download/5", name="29ntw7sh4r-5.zip"),),
    "He et al., Nature Biomedical Engineering 2020, doi 10.1038/s41551-020-0578-x",
)

HUB: dict[str, Source] = {
    "hest": Source(
        "hest",
        "HEST-1k",
        "CC BY-NC-SA 4.0, and the licence of each sample; given on request",
        f"{HUB_PAGES}MahmoodLab/hest",
        cite="Jaume et al., NeurIPS 2024, arXiv 2406.16192",
    ),
    "stimage": Source(
        "stimage",
        "STimage-1K4M",
        "MIT for its code; for the data see its card, and the licence of each study",
        f"{HUB_PAGES}jiawennnn/STimage-1K4M",
        cite="Chen et al., NeurIPS 2024",
    ),
}

# References of Hist2Cell. Lung: the address in a public retrieval benchmark. Breast: the address of the file changes
# with each version of the collection, and none is established.
REFERENCES: dict[str, Source] = {
    "lung": Source(
        "reference_lung",
        "Single cells and nuclei of five places of the healthy human lung",
        "as the portal states it",
        "https://5locationslung.cellgeni.sanger.ac.uk/",
        (RemoteFile("https://cellgeni.cog.sanger.ac.uk/5-locations-lung/lung_5loc_sc_sn_raw_counts_cellxgene.h5ad"),),
        MADISSOON,
    ),
    "breast": Source(
        "reference_breast",
        "Human Breast Cell Atlas, single cells",
        f"{CC_BY} (CELLxGENE)",
        "https://cellxgene.cziscience.com/collections/4195ab4c-20bd-4cd3-8b3d-65601277e731",
        cite=KUMAR,
    ),
}

WALLED: dict[str, tuple[Source, str]] = {
    "bracs": (
        Source(
            "bracs",
            "BRACS, regions of breast tumours with one of seven labels, H&E",
            "CC BY-NC 4.0 as far as known; read the terms when you register",
            "https://www.bracs.icar.cnr.it/",
            cite="Brancati et al., Database 2022, doi 10.1093/database/baac093",
        ),
        "1. Register on the homepage. 2. Open Data Collection, Download, Regions of Interest Set: it leads to an FTP "
        "server. 3. Download the folder BRACS_RoI/latest_version, with train, val and test and, in each, 0_N to 6_IC.",
    ),
    "spider": (
        Source(
            "spider",
            "SPIDER, labelled tiles of several organs, H&E",
            "CC BY-NC 4.0 as far as known, for research; given on request",
            "https://github.com/HistAI/SPIDER",
            cite="Nechaev et al. 2025, arXiv 2503.02876",
        ),
        "1. Accept the terms of the organ on the hub, as https://huggingface.co/datasets/histai/SPIDER-breast, and "
        "log in (`hf auth login`). 2. `hf download histai/SPIDER-breast --repo-type dataset --local-dir spider`. 3. "
        "`cd spider && cat spider-breast.tar.* | tar -xf -`.",
    ),
}
"""Sets that are given to those who register, and how to get them."""
