"""Genes that tell tissues apart, as groups whose densities a network may see."""

from __future__ import annotations

PROGRAMMES: dict[str, tuple[str, ...]] = {
    "epithelial": (
        *("EPCAM", "CDH1", "KRT5", "KRT6A", "KRT6B", "KRT7", "KRT8", "KRT14", "KRT15", "KRT16", "KRT17", "KRT18"),
        *("KRT19", "KRT20", "KRT23", "MUC1", "MUC2", "MUC4", "MUC5AC", "MUC5B", "MUC6", "ERBB2", "ERBB3", "EGFR"),
        *("ESR1", "PGR", "GATA3", "FOXA1", "TFF1", "TFF2", "TFF3", "AGR2", "AGR3", "SPDEF", "ELF3", "EHF", "TACSTD2"),
        *("CLDN3", "CLDN4", "CLDN7", "CLDN18", "CEACAM5", "CEACAM6", "CDX2", "LGR5", "OLFM4", "PIGR", "SFTPB", "SFTPC"),
        *("SCGB1A1", "SCGB2A1", "NKX2-1", "NAPSA", "TP63", "DSP", "DSC2", "DSG2", "DSG3", "LAMB3", "SERPINB5", "S100P"),
        *("VIL1", "FABP1", "UMOD", "SLC12A1", "SLC34A1", "CUBN", "LRP2", "NPHS1", "NPHS2", "AMY2A", "PRSS1", "CPA1"),
        *("CFTR", "SOX9", "HNF4A", "ALB", "APOA1", "TTR"),
    ),
    "stromal": (
        *("COL1A1", "COL1A2", "COL3A1", "COL5A1", "COL5A2", "COL6A1", "COL6A2", "COL6A3", "COL10A1", "COL11A1"),
        *("COL12A1", "COL14A1", "DCN", "LUM", "FN1", "POSTN", "SPARC", "FAP", "PDGFRA", "PDGFRB", "THY1", "FBLN1"),
        *("FBLN2", "FBN1", "MMP2", "MMP11", "CTHRC1", "SFRP1", "SFRP2", "SFRP4", "CXCL12", "CXCL14", "ACTA2", "TAGLN"),
        *("MYH11", "DES", "CNN1", "MYLK", "NOTCH3", "RGS5", "CSPG4", "ITGBL1", "GREM1", "IGF1", "DPT", "OGN", "PI16"),
        *("MFAP5", "ELN", "VCAN", "TNC", "ADAM12", "LRRC15", "INHBA", "C1S", "C3", "CFD", "ADIPOQ", "PLIN1", "LPL"),
    ),
    "endothelial": (
        *("PECAM1", "VWF", "CDH5", "KDR", "FLT1", "TEK", "TIE1", "CLDN5", "ESAM", "EGFL7", "RAMP2", "RAMP3", "ENG"),
        *("EMCN", "PLVAP", "ACKR1", "AQP1", "CLEC14A", "ROBO4", "ERG", "SOX17", "SOX18", "MMRN1", "MMRN2", "LYVE1"),
        *("PROX1", "CCL21", "CAVIN2", "NOSTRIN", "HOXD9", "CD93", "ECSCR", "S1PR1", "ANGPT2", "ESM1", "CA4", "GJA5"),
    ),
    "immune": (
        *("PTPRC", "CD3D", "CD3E", "CD3G", "CD2", "CD4", "CD8A", "CD8B", "CD27", "IL7R", "TRAC", "TRBC1", "CCR7"),
        *("SELL", "FOXP3", "CTLA4", "PDCD1", "LAG3", "TIGIT", "GZMA", "GZMB", "GZMK", "GNLY", "NKG7", "PRF1", "KLRB1"),
        *("KLRD1", "NCAM1", "MS4A1", "CD19", "CD22", "CD79A", "CD79B", "BANK1", "TCL1A", "PAX5", "MZB1", "JCHAIN"),
        *("TNFRSF17", "CD38", "SDC1", "DERL3", "IGHG1", "IGHM", "IGKC", "CD68", "CD163", "CD14", "CSF1R", "LYZ"),
        *("MRC1", "C1QA", "C1QB", "C1QC", "FCGR1A", "FCGR3A", "AIF1", "ITGAM", "ITGAX", "CD1C", "CLEC9A", "CLEC10A"),
        *("LAMP3", "CD83", "CD86", "CXCR4", "CCL5", "CXCL9", "CXCL10", "S100A8", "S100A9", "CSF3R", "FCGR3B", "KIT"),
        *("CPA3", "TPSAB1", "TPSB2", "HDC", "IRF8", "SPI1", "CYTIP", "CORO1A", "RAC2", "LAPTM5"),
    ),
}
"""Markers of four kinds of cells, by group, of which panels of single cells hold some: epithelium (with its tumours),
stroma and smooth muscle, endothelium, and cells of the immune system. Symbols are human, and match those of the mouse,
whose case alone differs; they are textbook markers and those of Xenium's, CosMx's and MERSCOPE's tissue panels."""
