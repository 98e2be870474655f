"""Folder conventions: which images, masks and splits are found, and what is said about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal
from unicodedata import normalize

import numpy as np
import pytest
import tifffile
from PIL import Image

from pscl_hpc.archive import Archive
from pscl_hpc.archive.build import BuildOptions, build
from pscl_hpc.archive.ingest.sources import Plan, plan
from pscl_hpc.cli.main import main
from pscl_hpc.errors import EXIT_INPUT, EXIT_SKIPPED, UserError

from .archives import labels, picture, pixels, table, write_csv

CLASSES = ["m", "n", "o"]


def _mask(path: Path, seed: int = 0) -> Path:
    return picture(path, labels((6, 8), seed))


def _plan(source: Path) -> Plan:
    return plan([source], classes=CLASSES)


@pytest.mark.parametrize(
    ("image", "mask", "image_id"),
    [
        ("img/0.tif", "gt/0_mask.png", "0"),
        ("img/0.tif", "gt/0.tif.png", "0"),
        ("images/0.png", "annotations/0.png", "0"),
        ("images/a/0.png", "masks/a/0_label.png", "a__0"),
        ("JPEGImages/0.jpg", "SegmentationClass/0.png", "0"),
        ("input/0.png", "target/0.png", "0"),
        ("image/0.png", "mask/0.png", "0"),
        ("raw/0.png", "annotated/0.png", "0"),
        ("micrographs/0.png", "ground truth/0.png", "0"),
        ("imgs/0.png", "segmentation/0.png", "0"),
        ("sem/0.png", "Masks/0.png", "0"),
        ("0.png", "labels/0.png", "0"),
        ("0007.tif", "0007_masks.tif", "0007"),
        ("img_0.tif", "img_0_masks.tif", "img_0"),
        ("image_0.png", "mask_0.png", "image_0"),
        ("0.tif", "0_mask.png", "0"),
        ("x.tif", "x.tif.png", "x"),
        ("sub/1.5kx.tif", "sub/1.5kx-mask.png", "sub__1.5kx"),
        ("img/0.tif", "img/0_mask.png", "0"),
        ("0_img.png", "0_mask.png", "0_img"),
        ("s-raw.tif", "s-seg.tif", "s-raw"),
        ("sub/image.png", "sub/mask.png", "sub__image"),
        ("0.tif", "0 (mask).png", "0"),
        ("0.tif", "0_binary.tif", "0"),
        ("0.jpg", "0.png", "0"),
        ("B.PNG", "masks/b.png", "B"),
    ],
)
def test_images_and_masks_of_a_convention_are_paired(
    tmp_path: Path, image: str, mask: str, image_id: str
) -> None:
    folder = tmp_path / "x"
    picture(folder / image)
    expected = labels((6, 8), 3)
    picture(folder / mask, expected)
    for source in (folder, tmp_path) if "/" in image and not image.startswith("sub") else (folder,):
        found = _plan(source)
        assert table(found) == {f"x/{image_id}": ("", True)}
        assert not found.skipped
        assert found.notes[0].startswith("x: 1 of 1 images have a mask (")
    result = build(_plan(folder), tmp_path / "a.h5", BuildOptions())
    assert (result.added, result.skipped) == (1, ())
    np.testing.assert_array_equal(Archive(tmp_path / "a.h5").read_mask(0), expected)


def test_folders_with_the_names_of_each_other_of_which_one_has_masks_are_refused(tmp_path: Path) -> None:
    for name in ("0", "1"):
        picture(tmp_path / "x" / "Bilder" / f"{name}.tif")
        picture(tmp_path / "x" / "Bilder" / "day1" / f"{name}.tif")
        _mask(tmp_path / "x" / "Masken" / "day1" / f"{name}.png")
    with pytest.raises(UserError, match=r"Bilder alone.*--images .*Bilder --masks .*Masken"):
        _plan(tmp_path / "x")
    for name in ("0", "1"):  # micrographs with two detectors
        picture(tmp_path / "y" / "se" / f"{name}.tif")
        picture(tmp_path / "y" / "bse" / f"{name}.tif")
    assert len(plan([tmp_path / "y"]).items) == 4


def test_an_image_of_few_values_is_named_if_it_has_no_mask(tmp_path: Path) -> None:
    _mask(tmp_path / "x" / "0.png")
    picture(tmp_path / "x" / "1.png")
    picture(tmp_path / "x" / "2.png", np.full((6, 8), 7, np.uint8))
    (warning, empty) = build(plan([tmp_path / "x"]), tmp_path / "a.h5", BuildOptions()).warnings[::-1]
    assert "x/0" in warning
    assert "x/1" not in warning
    assert "x/2" not in warning
    assert "x/2" in empty


def test_pictures_that_this_program_wrote_are_no_micrographs(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    picture(folder / "0.tif")
    for name in ("0.png", "0.overlay.png", "0.confidence.png"):
        _mask(folder / "predicted" / name)
    for name, text in (("run.json", '{"attempts": []}'), ("notes/run.json", '{"dose": 3}')):
        picture(folder / Path(name).with_suffix("") / "1.png")
        (folder / Path(name).with_suffix("") / Path(name).name).write_text(text)
    longest = "n" * 251
    picture(folder / f"{longest}.png")
    found = plan([folder])
    assert set(table(found)) == {"x/0", f"x/{longest}", "x/notes__run__1"}
    (skipped,) = found.skipped
    assert "3 files" in skipped.reason
    assert "predict" in skipped.reason


def test_of_two_files_of_an_id_the_one_like_a_mask_is_not_preferred(tmp_path: Path) -> None:
    picture(tmp_path / "x" / "img" / "0.jpg")
    _mask(tmp_path / "x" / "img" / "0.png")
    _mask(tmp_path / "x" / "gt" / "0.png")
    assert [item.path.suffix for item in _plan(tmp_path / "x").items] == [".jpg"]


@pytest.mark.parametrize(
    ("images", "masks", "prefix"),
    [
        ("{}", "{}_annot", "{}__"),
        ("{}", "{}annot", "{}__"),
        ("{}/images", "{}/masks", "{}__"),
        ("img/{}", "gt/{}", "{}__"),
        ("images/{}", "labels/{}", "{}__"),
    ],
)
def test_folders_named_after_splits_are_splits(tmp_path: Path, images: str, masks: str, prefix: str) -> None:
    folder = tmp_path / "x"
    for split in ("train", "val", "test"):
        picture(folder / images.format(split) / f"{split}0.png")
        _mask(folder / masks.format(split) / f"{split}0.png")
    found = _plan(folder)
    assert table(found) == {
        f"x/{prefix.format(split)}{split}0": (split, True) for split in ("train", "val", "test")
    }
    assert not found.skipped
    assert "train 1" in found.notes[1]


def test_splits_of_splits_json_and_the_csv_file_come_before_those_of_folders(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    for split in ("train", "val"):
        picture(folder / "img" / split / f"{split}.png")
    metadata = write_csv(tmp_path / "x.csv", "file,split", "val.png,test")
    assert table(plan([folder], metadata=metadata))["x/val__val"] == ("test", False)
    (folder / "splits.json").write_text(json.dumps({"train": ["val.png"]}))
    assert table(plan([folder])) == {"x/train__train": ("", False), "x/val__val": ("train", False)}


def test_folders_that_only_look_like_splits_are_not(tmp_path: Path) -> None:
    """Tensile tests, for example."""
    for name in ("test1", "test2", "test"):
        picture(tmp_path / "x" / "img" / name / "a.png")
    assert {split for split, _ in table(plan([tmp_path / "x"])).values()} == {""}


def test_nnunet(tmp_path: Path) -> None:
    folder = tmp_path / "Dataset001"
    picture(folder / "imagesTr" / "s0_0000.tif")
    _mask(folder / "labelsTr" / "s0.tif")
    picture(folder / "imagesTs" / "s1_0000.tif")
    assert table(_plan(folder)) == {
        "Dataset001/s0_0000": ("train", True),
        "Dataset001/s1_0000": ("test", False),
    }


def test_further_channels_of_nnunet_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    for channel in range(2):
        picture(folder / "imagesTr" / f"s_{channel:04d}.tif")
    _mask(folder / "labelsTr" / "s.tif")
    found = _plan(folder)
    assert list(table(found)) == ["d/s_0000"]
    assert "s_0001.tif" in found.skipped[0].reason


def test_an_image_folder_alone_leaves_masks_and_says_so(steel: Path) -> None:
    [note] = plan([steel / "img"]).notes
    assert str(steel) in note


def test_any_two_folders(tmp_path: Path) -> None:
    picture(tmp_path / "d" / "one" / "a.png")
    _mask(tmp_path / "d" / "two" / "a_seg.png")
    pair = (tmp_path / "d" / "one", tmp_path / "d" / "two")
    assert table(plan([], classes=CLASSES, pair=pair)) == {"d/a": ("", True)}
    (tmp_path / "d" / "two" / "a_seg.png").rename(tmp_path / "d" / "two" / "b.png")
    with pytest.raises(UserError, match="two"):
        plan([], classes=CLASSES, pair=pair)


def test_micrographs_with_names_of_masks_stay_micrographs(tmp_path: Path) -> None:
    """An image with a scale label beside the original, for example."""
    noise = pixels((40, 50), seed=1)
    picture(tmp_path / "x" / "a.png", noise)
    picture(tmp_path / "x" / "a_label.png", noise[::-1])
    assert table(plan([tmp_path / "x"])) == {"x/a": ("", False), "x/a_label": ("", False)}


def test_masks_alone_are_never_packed_as_micrographs(tmp_path: Path) -> None:
    _mask(tmp_path / "gt" / "a.png")
    picture(tmp_path / "x" / "b.png", pixels((40, 50)))
    _mask(tmp_path / "x" / "c_mask.png")
    found = plan([tmp_path / "gt", tmp_path / "x"])
    assert list(table(found)) == ["x/b"]
    assert [item.path for item in found.skipped] == ["gt/a.png", "x/c_mask.png"]


def test_the_listed_or_deeper_of_two_files_is_packed(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    deep = pixels((6, 8), "uint16")
    for name in ("a", "b"):
        picture(folder / "img" / f"{name}.jpg")
        tifffile.imwrite(folder / "img" / f"{name}.tif", deep)
    found = plan([folder])
    assert [item.path.name for item in found.items] == ["a.tif", "b.tif"]
    assert [Path(item.path).name for item in found.skipped] == ["a.jpg", "b.jpg"]
    (folder / "splits.json").write_text(json.dumps({"train": ["a.tif"], "test": ["b.jpg"]}))
    found = plan([folder])
    assert [(item.path.name, item.split) for item in found.items] == [("a.tif", "train"), ("b.jpg", "test")]
    (folder / "splits.json").unlink()
    metadata = write_csv(tmp_path / "x.csv", "file,split", "b.jpg,val")
    assert [item.path.name for item in plan([folder], metadata=metadata).items] == ["a.tif", "b.jpg"]


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
def test_names_in_both_unicode_forms_are_equal(tmp_path: Path, on_disk: Literal["NFC", "NFD"]) -> None:
    folder = tmp_path / "x"
    image, other = normalize("NFC", "gehärtet"), normalize("NFD", "gehärtet")
    if on_disk == "NFD":
        image, other = other, image
    picture(folder / "img" / f"{image}.png")
    _mask(folder / "gt" / f"{other}.png")
    listed = {"classes": CLASSES, "train": [f"{other}.png"], "references": [f"{other}.png"]}
    (folder / "splits.json").write_text(json.dumps(listed, ensure_ascii=False), encoding="utf-8")
    metadata = write_csv(tmp_path / "x.csv", "file,mask,specimen", f"{other}.png,gt/{image}.png,S1")
    found = plan([folder], metadata=metadata)
    assert not found.skipped
    build(found, tmp_path / "a.h5", BuildOptions())
    archive = Archive(tmp_path / "a.h5")
    for name in (image, other):
        record = archive.find(f"x/{name}")
        assert (record.split, record.specimen, record.has_mask) == ("train", "S1", True)
    assert archive.collections["x"].references == (archive.records[0].id,)


def test_files_of_operating_systems_are_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "x" / "img"
    picture(folder / "a.png")
    for name in ("@eaDir/a.png/SYNOFILE.png", "__MACOSX/b.png", ".ipynb_checkpoints/c.png", "._a.png"):
        picture(folder / name)
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "notes.txt", "params.json"):
        (folder / name).write_text("{}")
    found = plan([tmp_path / "x"])
    assert list(table(found)) == ["x/a"]
    assert not found.skipped


def test_files_that_are_not_supported_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "x"
    picture(folder / "img" / "a.png")
    (folder / "gt").mkdir()
    (folder / "gt" / "a.json").write_text('{"annotation": 1, "annotations": []}')
    for name in ("b.lif", "c.lif", "d.webp"):
        (folder / "img" / name).write_bytes(b"\0")
    reasons = [item.reason for item in plan([folder]).skipped]
    for text in ("2 files are not read (b.lif, c.lif)", "d.webp", "a.json"):
        assert sum(text in reason for reason in reasons) == 1
    out = str(tmp_path / "a.h5")
    assert main(["archive", "build", str(folder), "--out", out]) == EXIT_SKIPPED
    assert "1 image added, 0 unchanged, 3 skipped" in capsys.readouterr().out
    (folder / "img" / "a.png").unlink()
    assert main(["archive", "build", str(folder), "--out", out]) == EXIT_INPUT
    assert "b.lif" in capsys.readouterr().err


def test_the_command_says_what_was_paired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "d" / "one" / "a.png")
    grey = np.where(labels((6, 8)) == 1, 255, 0).astype(np.uint8)
    picture(tmp_path / "d" / "two" / "a.png", grey)
    out = tmp_path / "a.h5"
    command = ["archive", "build", "--images", str(tmp_path / "d" / "one"), "--out", str(out)]
    assert main(command) == EXIT_INPUT
    command += ["--masks", str(tmp_path / "d" / "two")]
    assert main([*command, "--classes", "m,n"]) == EXIT_INPUT
    assert "--mask-values 0=m,255=n" in capsys.readouterr().err
    assert main([*command, "--mask-values", "0=m,255=n"]) == 0
    assert "d: 1 of 1 images have a mask (--images and --masks)" in capsys.readouterr().err
    archive = Archive(out)
    np.testing.assert_array_equal(archive.read_mask(0), grey // 255)
    assert archive.collections["d"].classes == ("m", "n")
    assert main([*command, "--mask-values", "0=m,255=n"]) == 0
    assert "0 images added, 1 unchanged" in capsys.readouterr().out
    # Other values are another mask, not an unchanged one.
    assert main([*command, "--classes", "m,n", "--mask-values", "0=m,255=ignore"]) == EXIT_SKIPPED
    assert "d/a" in capsys.readouterr().err
    Image.fromarray(np.full((6, 8), 7, np.uint8)).save(tmp_path / "d" / "two" / "a.png")
    out.unlink()
    assert main([*command, "--mask-values", "0=m,255=n"]) == EXIT_INPUT
    error = capsys.readouterr().err
    assert "a.png" in error
    assert "7" in error
    for wrong, named in (
        ("0=m,0=n", "0"),
        ("x=m", "'x'"),
        ("0:m", "'0:m'"),
        ("0", "VALUE=CLASS"),
        ("7=", "7"),
    ):
        assert main([*command, "--mask-values", wrong]) == EXIT_INPUT
        error = capsys.readouterr().err
        assert "--mask-values" in error
        assert named in error
