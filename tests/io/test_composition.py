"""Tables of cell types that other programs write, and their rows beside spots."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from realdata import folder

import sthist

SEQUENCES = ["AAACAAGTATCTCCCA", "AAACAATCTACTAGCA", "AAACACCAATAACTGC", "AAACAGAGCGACTCCT"]
BARCODES = [f"{each}-1" for each in SEQUENCES]
PLACES = ["2x3", "3x3", "2x14", "10x13"]


def table(names, **obs):
    return ad.AnnData(np.ones((len(names), 3), np.float32), obs=pd.DataFrame(obs, index=names))


def shares(rows, columns=("B cells", "T/NK", "tumour"), seed=0):
    values = np.random.default_rng(seed).dirichlet(np.ones(len(columns)), len(rows))
    return pd.DataFrame(values, index=list(rows), columns=list(columns))


def read(adata, path, **kwargs):
    sthist.io.read_composition(adata, path, **kwargs)
    return adata.obsm["cell_abundance"], adata.uns["sthist"]["cell_abundance"]


class TestFormats:
    def test_stereoscope(self, tmp_path):
        """Places of spots, in another order, tabs."""
        frame = shares(PLACES[::-1])
        frame.to_csv(tmp_path / "W.2020-01-01.tsv", sep="\t")
        found, made = read(table([f"A1_{name}" for name in PLACES]), tmp_path / "W.2020-01-01.tsv")
        np.testing.assert_allclose(found, frame.loc[PLACES])
        assert list(found) == ["B cells", "T_NK", "tumour"]
        assert made["classes"]["T_NK"] == "T/NK"
        assert (made["quantity"], made["by"], made["missing"], made["unmatched"]) == ("proportions", "places", 0, 0)

    def test_places_of_the_columns_of_the_table(self, tmp_path):
        frame = shares(["2.02x2.98", "3.01x3.05", "1.99x14.1", "9.8x13.2"])
        frame.to_csv(tmp_path / "W.tsv", sep="\t")
        x, y = zip(*(map(int, name.split("x")) for name in PLACES), strict=True)
        found, _ = read(table(["p", "q", "r", "s"], array_x=x, array_y=y), tmp_path / "W.tsv")
        np.testing.assert_allclose(found, frame)

    @pytest.mark.parametrize("summary", ["q05", "means"])
    def test_cell2location(self, tmp_path, summary):
        frame = 7 * shares(BARCODES)
        frame.add_prefix(f"{summary}cell_abundance_w_sf_").to_csv(tmp_path / "abundance.csv.gz")
        found, made = read(table(BARCODES), tmp_path / "abundance.csv.gz")
        np.testing.assert_allclose(found, frame)
        assert list(made["classes"].values()) == list(frame)
        assert (made["quantity"], made["by"]) == ("abundances", "names")

    @pytest.mark.parametrize("header", [True, False])
    def test_rctd_and_spotlight(self, tmp_path, header):
        """As R writes them: quotes, a dot in place of the dash, no name of the first column, and residuals."""
        frame = shares([name.replace("-", ".") for name in BARCODES]).assign(res_ss=0.3)
        names = ",".join(f'"{name}"' for name in frame)
        rows = [f'"{name}",' + ",".join(map(str, row)) for name, row in zip(frame.index, frame.to_numpy(), strict=True)]
        (tmp_path / "weights.csv").write_text("\n".join([f'"",{names}' if header else names, *rows]) + "\n")
        found, made = read(table(BARCODES), tmp_path / "weights.csv")
        np.testing.assert_allclose(found, frame.drop(columns="res_ss"))
        assert (made["by"], made["quantity"]) == ("barcodes", "proportions")

    @pytest.mark.parametrize("change", [lambda name: name[:-2], lambda name: f"V1_{name}", lambda name: f"{name}-0"])
    def test_barcodes_as_they_are_changed(self, tmp_path, change):
        frame = shares([change(name) for name in BARCODES[::-1]])
        frame.to_parquet(tmp_path / "a.parquet")
        found, _ = read(table(BARCODES), tmp_path / "a.parquet")
        np.testing.assert_allclose(found, frame.iloc[::-1])

    def test_types_as_rows(self, tmp_path, caplog):
        frame = shares(BARCODES)
        frame.T.to_csv(tmp_path / "turned.csv")
        with caplog.at_level(logging.WARNING, logger="sthist"):
            found, _ = read(table(BARCODES), tmp_path / "turned.csv")
        assert "has the spots as columns; it is turned" in caplog.text
        np.testing.assert_allclose(found, frame)

    def test_real_spots_of_her2st(self, tmp_path):
        """What is in the table already, written as stereoscope does."""
        spots = ad.read_h5ad(folder("her2st") / "C3_counts.h5ad")
        known = spots.obsm["stereoscope_major"]
        known.set_axis([name.split("_")[1] for name in known.index]).sample(frac=1, random_state=0).to_csv(
            tmp_path / "C3.tsv", sep="\t"
        )
        found, made = read(spots, tmp_path / "C3.tsv")
        np.testing.assert_allclose(found, known, atol=1e-12)
        assert made["quantity"] == "proportions"


class TestRows:
    def test_more_than_the_table_has(self, tmp_path, caplog):
        frame = shares([*BARCODES, "AAACATTTCCCGGATT-1"])
        frame.to_csv(tmp_path / "a.csv")
        with caplog.at_level(logging.INFO, logger="sthist"):
            found, made = read(table(BARCODES), tmp_path / "a.csv")
        assert "1 of its 5 rows are no spots" in caplog.text
        assert made["unmatched"] == 1
        np.testing.assert_allclose(found, frame.iloc[:4])

    def test_less(self, tmp_path, caplog):
        frame = shares(BARCODES[1:])
        frame.to_csv(tmp_path / "a.csv")
        spots = table(BARCODES)
        with pytest.raises(ValueError, match=rf"a\.csv lacks 1 of the 4 spots of the table, such as '{BARCODES[0]}'"):
            read(spots, tmp_path / "a.csv")
        assert not spots.obsm
        with caplog.at_level(logging.WARNING, logger="sthist"):
            found, made = read(spots, tmp_path / "a.csv", missing="nan")
        assert made["missing"] == 1
        assert found.iloc[0].isna().all()
        np.testing.assert_allclose(found.iloc[1:], frame)
        with pytest.raises(ValueError, match="missing is 'zero'"):
            read(spots, tmp_path / "a.csv", missing="zero")

    def test_none(self, tmp_path):
        shares(["a", "b"]).to_csv(tmp_path / "a.csv")
        with pytest.raises(ValueError, match=r"none of the 4 spots of the table: .*'a', 'b'.*'AAACAAGTATCTCCCA-1'"):
            read(table(BARCODES), tmp_path / "a.csv")

    def test_of_several_samples(self, tmp_path):
        two = [f"{sample}_{name}" for sample in ("V1", "V2") for name in BARCODES]
        shares(two).to_csv(tmp_path / "a.csv")
        with pytest.raises(ValueError, match=r"more than once, as 'V1_.*' and 'V2_.*'\. Are several samples"):
            read(table(BARCODES), tmp_path / "a.csv")
        shares(BARCODES).to_csv(tmp_path / "b.csv")
        with pytest.raises(ValueError, match="is several spots of the table"):
            read(table(two), tmp_path / "b.csv")
        shares([*BARCODES, BARCODES[0]]).to_csv(tmp_path / "c.csv")
        with pytest.raises(ValueError, match="more than once"):
            read(table(BARCODES), tmp_path / "c.csv")


class TestRefused:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda f: f.assign(tumour=-0.1), "negative in 4 of 4 rows"),
            (lambda f: f.assign(tumour=[0.1, np.nan, 0.2, 0.3]), "'tumour' should hold numbers"),
            (lambda f: f.assign(spot_class="singlet"), "'spot_class' should hold numbers"),
            (lambda f: f.set_axis(["a", "b", "b"], axis=1), "cell types 'b' more than once"),
        ],
    )
    def test_values(self, tmp_path, change, message):
        change(shares(BARCODES)).to_csv(tmp_path / "a.csv")
        with pytest.raises(ValueError, match=message) as caught:
            read(table(BARCODES), tmp_path / "a.csv")
        assert "a.csv" in str(caught.value)

    def test_sums(self, tmp_path):
        frame = shares(BARCODES)
        frame.iloc[2] *= 2
        frame.to_csv(tmp_path / "a.csv")
        with pytest.raises(ValueError, match=r"1 of 4 rows do not sum to 1, first row .* \(2\)"):
            read(table(BARCODES), tmp_path / "a.csv", quantity="proportions")
        _, made = read(table(BARCODES), tmp_path / "a.csv", quantity="abundances")
        assert made["quantity"] == "abundances"

    def test_files(self, tmp_path):
        spots = table(BARCODES)
        with pytest.raises(FileNotFoundError, match=r"nothing\.csv"):
            read(spots, tmp_path / "nothing.csv")
        for name, content in (
            ("empty.csv", b""),
            ("header.csv", b",a,b\n"),
            ("binary.tsv", bytes(range(256)) * 4),
            ("packed.csv.gz", b"\x1f\x8b\x08 cut off"),
            ("damaged.parquet", b"PAR1 cut off"),
            ("ragged.csv", f",a,b\n{BARCODES[0]},1,2\n{BARCODES[1]},1\n".encode()),
            ("semicolons.csv", f";a;b\n{BARCODES[0]};1;2\n".encode()),
        ):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ValueError, match=name):
                read(spots, tmp_path / name)

    def test_names(self, tmp_path):
        shares(BARCODES).to_csv(tmp_path / "a.csv")
        spots = table(BARCODES)
        read(spots, tmp_path / "a.csv")
        with pytest.raises(ValueError, match="already"):
            read(spots, tmp_path / "a.csv")
        read(spots, tmp_path / "a.csv", overwrite=True)


def test_in_a_store(tmp_path):
    sdata = sthist.datasets.toy("visium", size_um=900)
    frame = shares(sdata["table"].obs_names)
    frame.to_csv(tmp_path / "a.csv")
    sdata.write(tmp_path / "s.zarr")
    sthist.io.read_composition(tmp_path / "s.zarr", tmp_path / "a.csv", key_added="known")
    found = sd.read_zarr(tmp_path / "s.zarr")["table"]
    np.testing.assert_allclose(found.obsm["known"], frame)
    sthist.pp.proportions(found, "known")
    assert found.uns["sthist"]["cell_proportions"]["classes"]["T_NK"] == "T/NK"
