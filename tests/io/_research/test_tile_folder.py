"""Folders of tiles with no slide: what they are listed as, and the pixels that come out of them."""

from __future__ import annotations

import json
import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

import sthist
from sthist._sample.samples import samples_of
from sthist.tiles import FolderReader, TileLoader, TileSpec


def save(path, height=64, width=64, seed=0, pixels=None):
    """A picture of noise, or of these pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels is None:
        pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3)).astype(np.uint8)
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels, photometric="rgb")
    else:
        Image.fromarray(pixels).save(path)
    return pixels


def bracs(root):
    """BRACS_RoI: split, class, and regions of any size of several patients."""
    for i, (split, label, slide) in enumerate(
        [
            ("train", "0_N", 264),
            ("train", "6_IC", 1003),
            ("val", "0_N", 9),
            ("test", "6_IC", 1283),
            ("test", "6_IC", 1283),
        ]
    ):
        name = f"BRACS_{slide}_{label[2:]}_{i + 1}.png"
        save(root / "latest_version" / split / label / name, 80 + 10 * i, 120, seed=i)
    return root


def spider(root):
    """SPIDER: one folder of patches, of which some are context only, and a list of what they are."""
    for i in range(6):
        save(root / "images" / f"patch_{i}.png", seed=i)
    records = [
        {
            "slide_id": f"slide_{i // 2}",
            "image_name": f"patch_{i}.png",
            "context_info": {"0_0": "patch_4.png", "0_1": None},
            "class": label,
            "split": "train" if i < 2 else "test",
        }
        for i, label in enumerate(["Adenocarcinoma high grade", "Fat", "Fat", "Muscle"])
    ]
    (root / "metadata.json").write_text(json.dumps(records))
    return root


class TestLayouts:
    def test_bracs(self, tmp_path):
        """Split and class are folders; the patient is in the name."""
        tiles = sthist.io.tile_folder(bracs(tmp_path), mpp=0.25, patient=r"BRACS_(\d+)_")
        obs = tiles.obs
        assert obs["file"].tolist() == sorted(obs["file"]) == obs.index.tolist()
        assert obs["file"].iloc[2] == "latest_version/train/0_N/BRACS_264_N_1.png"
        assert obs["split"].tolist() == ["test", "test", "train", "train", "val"]
        assert obs["label"].tolist() == ["6_IC", "6_IC", "0_N", "6_IC", "0_N"]
        assert obs["patient"].tolist() == ["1283", "1283", "264", "1003", "9"]
        assert obs["height"].tolist() == [110, 120, 80, 90, 100]
        assert (obs["width"].tolist(), set(obs["mpp"])) == ([120] * 5, {0.25})
        assert tiles.n_vars == 0
        assert tiles.X is None
        assert tiles.uns["sthist"]["tile_folder"]["call"] == "io.tile_folder"
        assert samples_of(tiles)[0].name == tmp_path.name

    def test_spider(self, tmp_path, caplog):
        """What is context only is left out; a slide is not a patient until somebody says so."""
        root = spider(tmp_path)
        tiles = sthist.io.tile_folder(root, mpp=0.5, labels=root / "metadata.json")
        assert tiles.obs["file"].tolist() == [f"images/patch_{i}.png" for i in range(4)]
        assert tiles.obs["label"].tolist() == ["Adenocarcinoma high grade", "Fat", "Fat", "Muscle"]
        assert tiles.obs["slide"].tolist() == ["slide_0", "slide_0", "slide_1", "slide_1"]
        assert tiles.obs["split"].tolist() == ["train", "train", "test", "test"]
        assert "patient" not in tiles.obs
        assert "2 of 6 images are left out" in caplog.text
        same = sthist.io.tile_folder(
            root / "images", mpp=0.5, labels=root / "metadata.json", columns={"patient": "slide_id"}
        )
        assert same.obs["patient"].tolist() == ["slide_0", "slide_0", "slide_1", "slide_1"]

    def test_folders_of_classes(self, tmp_path):
        """NCT-CRC-HE: TIFF files in a folder for each class."""
        for label in ("ADI", "TUM"):
            save(tmp_path / label / f"{label}-AAA.tif", 224, 224)
        tiles = sthist.io.tile_folder(tmp_path, mpp=0.5)
        assert tiles.obs["label"].tolist() == ["ADI", "TUM"]
        assert tiles.obs[["height", "width"]].to_numpy().tolist() == [[224, 224]] * 2
        assert list(tiles.obs) == ["file", "height", "width", "mpp", "label"]
        one = sthist.io.tile_folder(tmp_path / "TUM", mpp=0.5, labels=None)
        assert list(one.obs) == ["file", "height", "width", "mpp"]

    def test_a_table_with_a_scale_for_each(self, tmp_path):
        """MHIST's columns have blanks; a scanner may differ from image to image, and paths be from elsewhere."""
        for name in ("a", "b", "c"):
            save(tmp_path / "images" / f"MHIST_{name}.png")
        text = (
            "Image Name;Majority Vote Label;Partition;mpp;Case ID\nMHIST_c.png;SSA;train;2.0;007\n"
            "MHIST_a;HP;test;1.5;7b\n/data/mhist/images/MHIST_b.png;;test;1.5;8\n"
        )
        (tmp_path / "annotations.csv").write_text("\ufeff" + text, encoding="utf-8")
        tiles = sthist.io.tile_folder(
            tmp_path, labels=tmp_path / "annotations.csv", columns={"label": "Majority Vote Label"}
        )
        assert tiles.obs["mpp"].tolist() == [1.5, 1.5, 2.0]
        assert tiles.obs["label"].astype(object).where(tiles.obs["label"].notna(), None).tolist() == ["HP", None, "SSA"]
        assert tiles.obs["patient"].tolist() == ["7b", "8", "007"]
        assert tiles.obs["split"].tolist() == ["test", "test", "train"]

    def test_levels(self, tmp_path):
        save(tmp_path / "P1" / "x" / "tumour" / "1.png")
        save(tmp_path / "P2" / "y" / "stroma" / "1.png")
        with pytest.raises(
            ValueError, match=r"what do the 3 folders in 'P1/x/tumour/1.png' mean\? Name them with levels="
        ):
            sthist.io.tile_folder(tmp_path, mpp=0.5)
        tiles = sthist.io.tile_folder(tmp_path, mpp=0.5, levels=("patient", None, "label"))
        assert tiles.obs["patient"].tolist() == ["P1", "P2"]
        assert tiles.obs["label"].tolist() == ["tumour", "stroma"]

    def test_a_frame_of_labels(self, tmp_path):
        save(tmp_path / "1.png")
        frame = pd.DataFrame({"label": ["x"]}, index=pd.Index(["1"], name="image"))
        assert sthist.io.tile_folder(tmp_path, mpp=1, labels=frame).obs["label"].tolist() == ["x"]

    def test_a_folder_of_another_name_is_another_folder(self, tmp_path):
        """train/1.png of the table is not test/1.png of the folder."""
        save(tmp_path / "test" / "1.png")
        frame = pd.DataFrame({"file": ["train/1.png"], "label": ["x"]})
        with pytest.raises(ValueError, match=r"1 of 1 images in column 'file' are not in .*'train/1.png'"):
            sthist.io.tile_folder(tmp_path, mpp=1, labels=frame)


class TestFiles:
    def test_what_is_passed_over(self, tmp_path, caplog):
        """Hidden files and folders without a word, others counted."""
        caplog.set_level(logging.INFO)
        save(tmp_path / "x" / "a.PNG")
        for name in (".hidden.png", "x/._a.png", ".git/b.png", "__MACOSX/x/a.png", "x/.DS_Store"):
            (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
            (tmp_path / name).write_text("no picture")
        for name in ("README.md", "x/a.xml"):
            (tmp_path / name).write_text("")
        tiles = sthist.io.tile_folder(tmp_path, mpp=0.5)
        assert tiles.obs["file"].tolist() == ["x/a.PNG"]
        assert tiles.uns["sthist"]["tile_folder"]["n_other_files"] == 2
        assert "1 images of 1 classes; 2 other files are passed over" in caplog.text

    def test_kinds_of_pictures(self, tmp_path):
        """CMYK and palettes are converted, what is transparent is white; the header says it, the pixels show it."""
        red = np.full((20, 30, 3), (200, 40, 40), np.uint8)
        image = Image.fromarray(red)
        (tmp_path / "x").mkdir()
        image.convert("CMYK").save(tmp_path / "x" / "cmyk.tiff")
        Image.fromarray(np.dstack([red, np.full((20, 30), 0, np.uint8)])).save(tmp_path / "x" / "clear.png")
        image.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "x" / "palette.png")
        image.convert("CMYK").save(tmp_path / "x" / "cmyk.jpg", quality=100, subsampling=0)
        exif = Image.Exif()
        exif[274] = 6
        image.save(tmp_path / "x" / "turned.jpg", exif=exif, quality=100)
        (tmp_path / "x" / "cmyk.tiff").unlink()
        tiles = sthist.io.tile_folder(tmp_path, mpp=1)
        assert tiles.obs["file"].tolist() == [
            f"x/{name}" for name in ("clear.png", "cmyk.jpg", "palette.png", "turned.jpg")
        ]
        assert tiles.obs[["height", "width"]].to_numpy().tolist() == [[20, 30]] * 3 + [[30, 20]]
        pixels = FolderReader(tiles, TileSpec(20, 20)).read(range(4))
        assert (pixels[0] == 255).all()
        for i in (1, 2, 3):
            np.testing.assert_allclose(pixels[i], np.broadcast_to(red[0, 0], (20, 20, 3)), atol=4)

    def test_names_in_several_folders(self, tmp_path, caplog):
        """They are told apart by their path, and looked at with suspicion."""
        save(tmp_path / "train" / "x" / "1.png")
        save(tmp_path / "test" / "x" / "1.png", seed=1)
        tiles = sthist.io.tile_folder(tmp_path, mpp=0.5)
        assert tiles.obs_names.tolist() == ["test/x/1.png", "train/x/1.png"]
        assert "1 names of images are in several folders, such as 'test/x/1.png', 'train/x/1.png'" in caplog.text

    def test_broken_ones_left_out(self, tmp_path, caplog):
        save(tmp_path / "x" / "a.png")
        save(tmp_path / "x" / "b.png")
        content = (tmp_path / "x" / "b.png").read_bytes()
        (tmp_path / "x" / "b.png").write_bytes(content[: len(content) // 2])
        tiles = sthist.io.tile_folder(tmp_path, mpp=0.5, broken="leave out")
        assert tiles.obs["file"].tolist() == ["x/a.png"]
        assert "1 of 2 images" in caplog.text
        assert "'x/b.png'" in caplog.text


class TestReader:
    def test_native_pixels(self, tmp_path):
        """The middle of each image, to the last level, in the order that is asked for."""
        pixels = [save(tmp_path / f"{i}.png", 60 + 2 * i, 80, seed=i) for i in range(4)]
        tiles = sthist.io.tile_folder(tmp_path, mpp=0.5, labels=None)
        reader = FolderReader(tiles, TileSpec(size_um=20, px=40))
        order = [3, 0, 2]
        read = reader.read(order)
        assert (read.dtype, len(reader)) == (np.uint8, 4)
        for tile, i in zip(read, order, strict=True):
            np.testing.assert_array_equal(tile, pixels[i][10 + i : 50 + i, 20:60])
        subset = FolderReader(tiles[[2, 1]], TileSpec(size_um=20, px=40))
        np.testing.assert_array_equal(subset.read([0, 1]), reader.read([2, 1]))

    def test_each_at_its_own_scale(self, tmp_path):
        """Of two images of the same tissue at two scales, the tiles are means over the same squares."""
        fine = save(tmp_path / "a.png", 96, 96)
        coarse = fine.reshape(48, 2, 48, 2, 3).mean((1, 3)).round().astype(np.uint8)
        save(tmp_path / "b.png", pixels=coarse)
        frame = pd.DataFrame({"file": ["a", "b"], "label": "x", "mpp": [0.25, 0.5]})
        tiles = sthist.io.tile_folder(tmp_path, labels=frame)
        read = FolderReader(tiles, TileSpec.from_mpp(1.0, 16)).read([0, 1]).astype(int)
        middle = fine[16:80, 16:80].reshape(16, 4, 16, 4, 3).mean((1, 3))
        assert np.abs(read[0] - middle).max() <= 0.51
        assert np.abs(read[1] - middle).max() <= 1.01

    def test_smaller_images(self, tmp_path):
        pixels = save(tmp_path / "a.png", 30, 50)
        tiles = sthist.io.tile_folder(tmp_path, mpp=0.5, labels=None)
        with pytest.raises(
            ValueError, match=r"1 of 1 images are smaller than a tile of 20 µm, such as 'a.png' of 25 x 15 µm"
        ):
            FolderReader(tiles, TileSpec(20, 40))
        tile = FolderReader(tiles, TileSpec(20, 40), fill=7).read([0])[0]
        np.testing.assert_array_equal(tile[5:35], pixels[:, 5:45])
        assert (tile[:5] == 7).all()
        assert (tile[35:] == 7).all()
        # Half of a tile pixel at a side is none: its centre is on the image.
        assert (FolderReader(tiles, TileSpec(15.4, 15), allow_upsampling=True).read([0]) != 255).any()

    def test_coarser_images(self, tmp_path):
        save(tmp_path / "a.png")
        tiles = sthist.io.tile_folder(tmp_path, mpp=1.0, labels=None)
        with pytest.raises(
            ValueError, match=r"1 of 1 images are coarser than tiles of 0.5 µm/px, such as 'a.png' of 1 µm/px"
        ):
            FolderReader(tiles, TileSpec(32, 64))
        assert FolderReader(tiles, TileSpec(32, 64), allow_upsampling=True).read([0]).shape == (1, 64, 64, 3)

    def test_as_a_file(self, tmp_path):
        """The table is an AnnData like others: written, read, and moved with its folder."""
        save(tmp_path / "data" / "x" / "a.png")
        tiles = sthist.io.tile_folder(tmp_path / "data", mpp=0.5)
        tiles.write_h5ad(tmp_path / "tiles.h5ad")
        (tmp_path / "data").rename(tmp_path / "moved")
        again = ad.read_h5ad(tmp_path / "tiles.h5ad")
        with pytest.raises(FileNotFoundError, match=r"Image 'x/a.png': there is no file"):
            FolderReader(again, TileSpec(16, 32)).read([0])
        assert FolderReader(again, TileSpec(16, 32), root=tmp_path / "moved").read([0]).shape == (1, 32, 32, 3)
        assert again.obs["label"].tolist() == ["x"]

    def test_what_has_changed(self, tmp_path):
        save(tmp_path / "a.png", 64, 80)
        reader = FolderReader(sthist.io.tile_folder(tmp_path, mpp=0.5, labels=None), TileSpec(16, 32))
        save(tmp_path / "a.png", 64, 81)
        with pytest.raises(ValueError, match=r"a.png has 81 x 64 px, and had 80 x 64 when it was listed"):
            reader.read([0])
        with pytest.raises(IndexError, match=r"Rows 1 to 1 are asked for; there are 1 images"):
            reader.read([1])
        with pytest.raises(KeyError, match=r"This table is no folder of tiles"):
            FolderReader(ad.AnnData(obs=pd.DataFrame(index=["a"])), TileSpec(16, 32))

    def test_batches(self, tmp_path):
        """The loader of slides takes it; shuffled, classes that lie in one folder each are mixed."""
        for i in range(40):
            save(tmp_path / "ab"[i // 20] / f"{i:02}.png", 16, 16, seed=i)
        tiles = sthist.io.tile_folder(tmp_path, mpp=1.0)
        reader = FolderReader(tiles, TileSpec(16, 16))
        seen = []
        for rows, read in TileLoader(reader, range(40), batch_size=16):
            np.testing.assert_array_equal(read, reader.read(rows))
            seen += rows.tolist()
        assert seen == list(range(40))
        shuffled = TileLoader(reader, range(40), batch_size=16, shuffle=True, seed=0).indices()
        assert sorted(shuffled) == list(range(40))
        # A run of 16 out of two classes of 20 has at least 2 of either with a probability above 0.999.
        labels = tiles.obs["label"].to_numpy()[shuffled[:16]]
        assert min((labels == "a").sum(), (labels == "b").sum()) >= 2

    def test_the_guard_of_pillow_is_as_it_was(self, tmp_path):
        """It is one for all threads: many of them lift it and put it back."""
        for i in range(64):
            save(tmp_path / f"{i:02}.png", 16, 16, seed=i)
        before = Image.MAX_IMAGE_PIXELS
        tiles = sthist.io.tile_folder(tmp_path, mpp=1.0, labels=None)
        FolderReader(tiles, TileSpec(16, 16)).read(range(64))
        assert before == Image.MAX_IMAGE_PIXELS
        assert before is not None

    def test_a_table_is_of_its_rows(self, tmp_path):
        """Rows of the loader are those of the table that the reader has."""
        pixels = [save(tmp_path / f"{i}.png", 16, 16, seed=i) for i in range(6)]
        tiles = sthist.io.tile_folder(tmp_path, mpp=1.0, labels=None)
        loader = TileLoader(FolderReader(tiles, TileSpec(16, 16)), [4, 1], batch_size=2)
        ((rows, read),) = list(loader)
        np.testing.assert_array_equal(read, np.stack([pixels[4], pixels[1]])[rows])
