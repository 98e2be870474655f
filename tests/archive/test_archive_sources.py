"""Which images and masks are found in folders, and which files are reported as skipped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pscl_hpc.archive import Archive
from pscl_hpc.archive.build import BuildOptions, build
from pscl_hpc.archive.ingest.sources import plan
from pscl_hpc.errors import UserError

from .archives import labels, picture, table, write_csv, write_splits


def test_a_dataset_folder(steel: Path) -> None:
    found = plan([steel])
    assert table(found) == {
        "steel/a": ("train", True),
        "steel/b": ("val", True),
        "steel/c": ("test_ood", True),
        "steel/d": ("train", False),
    }
    collection = found.collections["steel"]
    assert collection.classes == ("matrix", "carbide", "pore")
    assert (collection.background, collection.ignore_classes, collection.references) == (
        0,
        (2,),
        ("steel/a",),
    )
    assert found.items[0].source == "steel/img/a.png"
    assert not found.skipped


@pytest.mark.parametrize(("images", "masks"), [("images", "masks"), ("img", "labels"), ("Images", "GT")])
def test_folder_names_and_other_suffixes(tmp_path: Path, images: str, masks: str) -> None:
    picture(tmp_path / "x" / images / "deep" / "a.v2.jpg")
    picture(tmp_path / "x" / masks / "deep" / "a.v2.png", labels((6, 8)))
    found = plan([tmp_path / "x"], classes=["m", "n", "o"])
    assert table(found) == {"x/deep__a.v2": ("", True)}
    assert found.collections["x"].classes == ("m", "n", "o")


def test_a_folder_of_datasets_and_plain_folders_and_files(steel: Path, tmp_path: Path) -> None:
    picture(tmp_path / "plain" / "sub" / "p.bmp")
    picture(tmp_path / "plain" / ".hidden" / "h.png")
    picture(tmp_path / "single" / "s.png")
    both = plan([tmp_path, tmp_path / "plain", tmp_path / "single" / "s.png"])
    assert [item.id for item in both.items] == [
        "plain/sub__p",
        "single/s",
        "steel/a",
        "steel/b",
        "steel/c",
        "steel/d",
    ]
    assert both.collections["plain"].classes == ()
    reversed_order = plan([tmp_path / "single" / "s.png", tmp_path / "plain", tmp_path])
    assert [item.id for item in reversed_order.items] == [item.id for item in both.items]


def test_images_beside_the_folders_that_are_read_are_named(steel: Path, tmp_path: Path) -> None:
    picture(steel / "gt_region" / "a.png", labels((6, 8)))
    assert not plan([steel]).skipped
    picture(steel / "e.png")
    picture(steel / "img_new" / "f.png")
    picture(steel / "img_new" / "g.png")
    picture(tmp_path / "plain" / "h.png")
    picture(tmp_path / "i.png")
    found = plan([tmp_path])
    assert [item.dataset for item in found.items] == ["steel"] * 4
    skipped = {Path(item.path): item.reason for item in found.skipped}
    images = {steel: "e.png", steel / "img_new": "f.png", tmp_path / "plain": "h.png", tmp_path: "i.png"}
    assert skipped.keys() == images.keys()
    for folder, name in images.items():
        assert name in skipped[folder]
    assert "2 files" in skipped[steel / "img_new"]
    assert str(tmp_path / "plain") not in [item.path for item in plan([tmp_path, tmp_path / "plain"]).skipped]


def test_masks_under_an_unknown_name_are_named(tmp_path: Path) -> None:
    picture(tmp_path / "x" / "images" / "a.png")
    picture(tmp_path / "x" / "phases" / "a.png", labels((6, 8)))
    [skipped] = plan([tmp_path / "x"]).skipped
    assert skipped.path == str(tmp_path / "x" / "phases")
    assert "images/" in skipped.reason
    csv_file = write_csv(tmp_path / "x.csv", "file,mask", "a.png,phases/a.png")
    named = plan([tmp_path / "x"], metadata=csv_file, classes=["m", "n", "o"])
    assert not named.skipped
    assert table(named) == {"x/a": ("", True)}


@pytest.mark.parametrize(("images", "masks"), [("sem", "Masks"), (".", "labels"), ("a", "ground truth")])
def test_masks_are_never_packed_as_micrographs(tmp_path: Path, images: str, masks: str) -> None:
    """Not even if no name matches."""
    picture(tmp_path / "top" / "x" / images / "a.png")
    picture(tmp_path / "top" / "x" / masks / "b.png", labels((6, 8)))
    for source in (tmp_path / "top" / "x", tmp_path / "top"):
        with pytest.raises(UserError, match=f"{tmp_path / 'top' / 'x'} .*{masks}/.*--masks"):
            plan([source])


def test_dataset_folders_deeper_down_are_named(steel: Path, tmp_path: Path) -> None:
    steel.rename(tmp_path / "b")
    (tmp_path / "top" / "group").mkdir(parents=True)
    (tmp_path / "b").rename(tmp_path / "top" / "group" / "steel")
    with pytest.raises(UserError, match=f"{tmp_path / 'top' / 'group'} "):
        plan([tmp_path / "top"])


def test_classes_without_a_mask_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "x" / "img" / "a.png")
    with pytest.raises(UserError, match="--classes"):
        plan([tmp_path / "x"], classes=["m", "n"])


def test_files_without_a_partner_are_reported(steel: Path) -> None:
    picture(steel / "gt" / "z.png", labels((6, 8)))
    picture(steel / "img" / "a.jpg")
    write_splits(steel, train=["a.png", "gone.png"])
    reasons = {Path(item.path).name: item.reason for item in plan([steel]).skipped}
    assert "without an image" in reasons["z.png"]
    assert "splits.json" in reasons["gone.png"]
    assert "steel/a" in reasons["a.jpg"]  # splits.json lists a.png


def test_images_behind_links_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "steel"
    picture(folder / "img" / "a.png")
    picture(tmp_path / "store" / "batch" / "b.png")
    (folder / "img" / "more").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "up").symlink_to(folder / "img")
    (folder / "img" / "c.png").symlink_to(tmp_path / "store" / "batch" / "b.png")
    (folder / "img" / "d.png").symlink_to(tmp_path / "moved.png")
    found = plan([folder])
    assert list(table(found)) == ["steel/a", "steel/c", "steel/d", "steel/more__batch__b"]
    packed = build(found, tmp_path / "a.h5", BuildOptions())
    assert (packed.added, [item.path for item in packed.skipped]) == (3, ["steel/img/d.png"])
    assert "No such file" in packed.skipped[0].reason


def test_a_link_to_a_folder_above_is_not_followed(steel: Path) -> None:
    """It would bring the masks in as micrographs."""
    before = plan([steel])
    (steel / "img" / "up").symlink_to(steel)
    after = plan([steel])
    assert table(after) == table(before)
    assert (after.notes, after.skipped) == (before.notes, before.skipped)


def test_images_of_one_id_are_counted_once_and_the_preferred_one_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "steel"
    for name in ("a.png", "a.jpg", "b.png"):
        picture(folder / "img" / name)
    picture(folder / "gt" / "a.png", labels((6, 8)))
    found = plan([folder], classes=["m", "n", "o"])
    assert found.notes == ("steel: 1 of 2 images have a mask (img/ + gt/)",)
    assert [Path(item.path).name for item in found.skipped] == ["a.jpg"]


def test_an_ignored_background_is_told(steel: Path) -> None:
    write_splits(steel, classes=["nothing", "matrix", "carbide"], ignore_classes=[0])
    assert any("nothing" in note and "background" in note for note in plan([steel]).notes)
    write_splits(steel, classes=["nothing", "matrix", "carbide"], ignore_classes=[0], background=1)
    assert not any("background" in note for note in plan([steel]).notes)


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"st\xe4hle")
    picture(folder / "img" / "a.png").rename(folder / "img" / os.fsdecode(b"H\xe4rte.png"))
    mask = picture(folder / "gt" / "a.png", labels((6, 8)))
    mask.with_name(os.fsdecode(b"gr\xf6\xdfer.png")).write_bytes(mask.read_bytes())
    mask.rename(folder / "gt" / os.fsdecode(b"H\xe4rte.png"))
    found = plan([folder], classes=["m", "n", "o"])
    packed = build(found, tmp_path / "a.h5", BuildOptions())
    assert (packed.added, len(packed.skipped)) == (1, 1)
    assert packed.skipped[0].path.endswith("/gr\ufffd\ufffder.png")
    (record,) = Archive(tmp_path / "a.h5").records
    assert record.has_mask
    assert (record.id, record.source) == ("st\ufffdhle/H\ufffdrte", "st\ufffdhle/img/H\ufffdrte.png")


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone"):
        plan([tmp_path / "gone"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        plan([tmp_path / "empty"])
    picture(tmp_path / "one" / "x" / "a.png")
    picture(tmp_path / "two" / "x" / "b.png")
    with pytest.raises(UserError, match=r"one/x.*'x'"):
        plan([tmp_path / "one" / "x", tmp_path / "two" / "x"])
