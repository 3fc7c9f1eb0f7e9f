"""How close a virtual image is to the real one: pixels, structure, perception, distributions, seams, nuclei."""

from sthist._weights.files import MetricUnavailable
from sthist.metrics._compare import compare, summarize
from sthist.metrics._deep import clip_similarity, fid, kid, lpips
from sthist.metrics._nuclei import (
    NucleusPreservation,
    NucleusSegmentation,
    nucleus_preservation,
    nucleus_segmentation,
)
from sthist.metrics._pixels import mse, psnr, seam_score, ssim
from sthist.metrics._regions import RegionTest, region_tests

__all__ = [
    "MetricUnavailable",
    "NucleusPreservation",
    "NucleusSegmentation",
    "RegionTest",
    "clip_similarity",
    "compare",
    "fid",
    "kid",
    "lpips",
    "mse",
    "nucleus_preservation",
    "nucleus_segmentation",
    "psnr",
    "region_tests",
    "seam_score",
    "ssim",
    "summarize",
]
