"""Checking an archive finds all problems and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pscl_hpc.archive import Archive, Collection, ShardWriter
from pscl_hpc.archive import copies as copies_module
from pscl_hpc.archive.build import BuildOptions, build
from pscl_hpc.archive.check import Finding, check
from pscl_hpc.archive.contact_sheet import class_colours, contact_sheet
from pscl_hpc.archive.copies import MOST_IMAGES
from pscl_hpc.archive.duplicates import SIDE, Thumbnailer, Thumbnails, similar_pairs
from pscl_hpc.archive.ingest.sources import plan
from pscl_hpc.archive.signatures import turned

from .archives import PLAIN, STEEL, Pixels, labels, pixels, texture, write_mixed


def _archive(path: Path, images: dict[str, Pixels], **fields: dict[str, str]) -> Archive:
    with ShardWriter(path, [PLAIN]) as writer:
        for stem, image in images.items():
            writer.add(image, id=f"plain/{stem}", dataset="plain", **fields.get(stem, {}))  # type: ignore[arg-type]
    return Archive(path)


def _kinds(findings: list[Finding]) -> list[tuple[str, tuple[str, ...]]]:
    return [(finding.kind, finding.images) for finding in findings]


def test_a_clean_archive_has_no_findings(tmp_path: Path) -> None:
    images = {f"{number}": texture((90, 120), number) for number in range(30)}
    assert check(_archive(tmp_path / "a.h5", images)) == []


CHANGES: dict[str, Callable[[Pixels], Pixels]] = {
    "same": lambda image: image,
    "rotated by 90 degrees": lambda image: np.rot90(image, 3),
    "rotated by 180 degrees": lambda image: np.rot90(image, 2),
    "rotated by 270 degrees": lambda image: np.rot90(image, 1),
    "mirrored": lambda image: image[:, ::-1],
    "mirrored, rotated by 180 degrees": lambda image: image[::-1],
    "mirrored, rotated by": lambda image: np.swapaxes(image, 0, 1),
    "near copy": lambda image: np.clip(image * 0.8 + 20 + pixels(image.shape) / 40, 0, 255).astype(np.uint8),
    "near": lambda image: np.asarray(Image.fromarray(image).resize((97, 131))),
}


@pytest.mark.parametrize("how", list(CHANGES))
@pytest.mark.parametrize("size", [(120, 120), (100, 140)])
def test_copies_are_found_however_changed(tmp_path: Path, how: str, size: tuple[int, int]) -> None:
    images: dict[str, Pixels] = {f"{number}": texture(size, number) for number in range(6)}
    images["copy"] = np.ascontiguousarray(CHANGES[how](images["2"]))
    findings = check(_archive(tmp_path / "a.h5", images))
    assert _kinds(findings) == [("duplicate", ("plain/2", "plain/copy"))]
    assert ("the same pixels" if how == "same" else how) in findings[0].detail


def test_a_copy_in_another_split_is_a_leak(tmp_path: Path) -> None:
    images = {"a": texture((80, 80)), "b": np.ascontiguousarray(texture((80, 80))[::-1])}
    archive = _archive(tmp_path / "a.h5", images, a={"split": "train"}, b={"split": "test"})
    findings = check(archive)
    assert _kinds(findings) == [("leak", ("plain/a", "plain/b"))]
    assert "train and test" in findings[0].detail


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), noise=st.floats(0, 0.2))
def test_no_copy_is_missed(seed: int, noise: float) -> None:
    """Against all pairs in all orientations, compared one by one."""
    random = np.random.default_rng(seed)
    stack = [random.normal(size=(SIDE, SIDE)) for _ in range(4)]
    stack += [
        np.rot90(image, turns) + noise * random.normal(size=(SIDE, SIDE)) for turns, image in enumerate(stack)
    ]
    stack += [np.swapaxes(stack[0], 0, 1)]
    exact = np.array([image - image.mean() for image in stack])
    exact /= np.linalg.norm(exact, axis=(1, 2), keepdims=True)
    thumbnails = Thumbnails(len(stack))
    for index, image in enumerate(exact):
        thumbnails[index] = image.astype(np.float32)
    pairs = {(pair.first, pair.second): pair.correlation for pair in similar_pairs(thumbnails)}
    group = np.arange(len(stack))
    for first, second in pairs:
        group[group == group[second]] = group[first]
    for first in range(len(stack)):
        for second in range(first + 1, len(stack)):
            turned = [
                np.rot90(side, turns) for side in (exact[second], exact[second].T) for turns in range(4)
            ]
            best = max(float((exact[first] * image).sum()) for image in turned)
            if best >= 0.981:
                assert group[first] == group[second]
            if (first, second) in pairs:
                assert best == pytest.approx(pairs[first, second], abs=1e-3)
    assert group[0] == group[8]


def test_copies_among_many_pictures_are_found_in_every_orientation() -> None:
    """Pictures under one strong shading, so that all of them look somewhat alike."""
    random = np.random.default_rng(0)
    shading = 3 * np.linspace(-1, 1, SIDE)[:, None] ** 2
    stack = [random.normal(size=(SIDE, SIDE)) + shading for _ in range(600)]
    for turn in range(8):
        stack[500 + turn] = turned(stack[turn].astype(np.float32), turn)
    thumbnails = Thumbnails(len(stack))
    for index, image in enumerate(stack):
        centred = image - image.mean()
        thumbnails[index] = (centred / np.linalg.norm(centred)).astype(np.float32)
    pairs = [(pair.first, pair.second) for pair in similar_pairs(thumbnails)]
    assert pairs == [(turn, 500 + turn) for turn in range(8)]


def test_many_copies_are_one_finding(tmp_path: Path) -> None:
    images: dict[str, Pixels] = {f"{number:03d}": texture((60, 60), number) for number in range(20)}
    for number in range(120):
        images[f"copy{number:03d}"] = np.rot90(images["003"], number % 4).copy()
        images[f"copy{number:03d}"][0, 0] = number
    (finding,) = check(_archive(tmp_path / "a.h5", images))
    assert finding.kind == "duplicate"
    assert len(finding.images) == MOST_IMAGES
    assert finding.images[0] == "plain/003"
    assert "118 more" in finding.detail


def test_groups_beyond_the_most_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies_module, "MOST_GROUPS", 2)
    images = {f"{number}{twin}": texture((60, 60), number) for number in range(5) for twin in "ab"}
    found = check(_archive(tmp_path / "a.h5", images))
    assert [finding.images for finding in found] == [("plain/0a", "plain/0b"), ("plain/1a", "plain/1b"), ()]
    assert "3 more" in found[2].detail


def test_noise_under_uneven_light_is_left_out_with_a_remark(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    shade = 128 + 40 * np.linspace(-1, 1, 200)[None, :] * np.ones((150, 1))
    images: dict[str, Pixels] = {
        f"{number}": np.clip(shade + random.normal(0, 6, shade.shape), 0, 255).astype(np.uint8)
        for number in range(6)
    }
    images["same"] = images["2"]
    images["texture"] = texture((150, 200))
    images["turned"] = np.rot90(images["texture"]).copy()
    remarks: list[str] = []
    findings = check(_archive(tmp_path / "a.h5", images), remark=remarks.append)
    assert _kinds(findings) == [
        ("duplicate", ("plain/2", "plain/same")),
        ("duplicate", ("plain/texture", "plain/turned")),
    ]
    assert len(remarks) == 1
    assert "7 of 9" in remarks[0]


def test_a_changed_index_is_found(tmp_path: Path) -> None:
    write_mixed(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        images = file["images"][()]
        images["um_per_pixel"][3] = 0.5
        file["images"][...] = images
    found = [finding for finding in check(Archive(tmp_path / "a.h5")) if finding.kind == "checksum"]
    assert len(found) == 1
    assert "fingerprint" in found[0].detail


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 300), width=st.integers(1, 300), strip=st.sampled_from([1, 7, 256]))
def test_thumbnails_are_area_means(height: int, width: int, strip: int) -> None:
    image = pixels((height, width, 1), "uint16").astype(np.float32)
    thumbnailer = Thumbnailer(height, width)
    for top in range(0, height, strip):
        thumbnailer.add(image[top : top + strip])
    mean = image[:, :, 0].astype(np.float64)
    for _ in range(2):  # both axes: every pixel 40 times, so that a cell is a whole number of them
        mean = np.repeat(mean, SIDE, axis=0).reshape(SIDE, -1, mean.shape[1]).mean(axis=1).T
    mean -= mean.mean()
    norm = np.linalg.norm(mean)
    if norm > 1:
        np.testing.assert_allclose(thumbnailer.area_means(), mean / norm, atol=1e-5)


@pytest.mark.parametrize(
    "how", ["rotated by 90 degrees", "rotated by 180 degrees", "mirrored", "half as large"]
)
def test_fine_detail_does_not_hide_a_copy(tmp_path: Path, how: str) -> None:
    """Grains of a few pixels in images whose sides are not multiples of the thumbnail's."""
    grains = np.random.default_rng(0).integers(0, 256, (33, 45), dtype=np.uint8)
    image = np.asarray(Image.fromarray(grains).resize((171, 129)))
    half = np.asarray(Image.fromarray(image).resize((86, 65), Image.Resampling.BOX))
    copy = half if how == "half as large" else np.ascontiguousarray(CHANGES[how](image))
    findings = check(_archive(tmp_path / "a.h5", {"a": image, "b": copy, "other": texture((129, 171))}))
    assert _kinds(findings) == [("duplicate", ("plain/a", "plain/b"))]


def test_flat_images_are_compared_by_their_pixels_alone(tmp_path: Path) -> None:
    images = {name: np.full((50, 50), level, np.uint8) for name, level in (("a", 7), ("b", 9), ("c", 7))}
    assert _kinds(check(_archive(tmp_path / "a.h5", images))) == [("duplicate", ("plain/a", "plain/c"))]


def _break(path: Path, pool: str, prefix: str) -> None:
    """Change one stored value but not its checksum."""
    with h5py.File(path, "r+") as file:
        rows = file["images"][()]
        (row,) = rows[rows["id"] == b"steel/1-uint16-1"]
        block, place = file[f"tiles/{pool}/{row[f'{prefix}block']}"], int(row[f"{prefix}start"]) + 4
        block[place] = 1 - block[place] if pool == "mask" and block[place] < 2 else 1


def test_a_changed_pixel_is_found(tmp_path: Path) -> None:
    write_mixed(tmp_path / "a.h5", "none")
    before = _kinds(check(Archive(tmp_path / "a.h5")))
    assert not [kind for kind, _ in before if kind in ("checksum", "mask")]
    _break(tmp_path / "a.h5", "uint16x1", "")
    assert ("checksum", ("steel/1-uint16-1",)) in _kinds(check(Archive(tmp_path / "a.h5")))


def test_a_changed_mask_is_found(tmp_path: Path) -> None:
    write_mixed(tmp_path / "a.h5", "none")
    _break(tmp_path / "a.h5", "mask", "mask_")
    found = check(Archive(tmp_path / "a.h5"))
    (item,) = (item for item in found if item.kind == "checksum")
    assert "mask of steel/1-uint16-1" in item.detail


def test_garbage_in_a_compressed_tile_is_found(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a.h5", [PLAIN], "gzip") as writer:
        for number in range(3):
            writer.add(texture((200, 200), number) // 16, id=f"plain/{number}", dataset="plain")
    archive = Archive(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        offset = int(file["tiles/uint8x1/0-chunks"][archive.rows[1].start]["offset"])
    with (tmp_path / "a.h5").open("r+b") as file:
        file.seek(offset + 10)
        file.write(b"\xff" * 50)
    findings = check(Archive(tmp_path / "a.h5"))
    assert _kinds(findings) == [("checksum", ("plain/1",))]
    assert "plain/1" in findings[0].detail


def test_a_mask_outside_its_classes_is_found(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a.h5", [STEEL]) as writer:
        writer.add(texture((20, 30)), id="steel/a", dataset="steel", mask=labels((20, 30)))
        writer.add(texture((20, 31), 1), id="steel/b", dataset="steel", mask=np.full((20, 31), 255, np.uint8))
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["collections"][()] = (
            file["collections"]
            .asstr()[()]
            .replace('["matrix", "carbide", "pore"]', '["matrix", "carbide"]')
            .replace('"ignore_classes": [2]', '"ignore_classes": []')
        )
    found = [finding for finding in check(Archive(tmp_path / "a.h5")) if finding.kind == "mask"]
    assert [finding.images for finding in found] == [("steel/a",), ("steel/b",)]
    assert "2" in found[0].detail


def test_references_must_be_annotated_training_images(tmp_path: Path) -> None:
    names = ("steel/gone", "steel/bare", "steel/test", "steel/good")
    with ShardWriter(tmp_path / "a.h5", [Collection("steel", ("a", "b", "c"), references=names)]) as writer:
        writer.add(texture((20, 30), 1), id="steel/bare", dataset="steel")
        writer.add(
            texture((20, 30), 2), id="steel/test", dataset="steel", mask=labels((20, 30)), split="test"
        )
        writer.add(
            texture((20, 30), 3), id="steel/good", dataset="steel", mask=labels((20, 30)), split="train"
        )
    findings = check(Archive(tmp_path / "a.h5"))
    assert {finding.kind for finding in findings} == {"reference"}
    details = {finding.images[0]: finding.detail for finding in findings}
    assert sorted(details) == ["steel/bare", "steel/gone", "steel/test"]
    assert "mask" in details["steel/bare"]
    assert "archive" in details["steel/gone"]
    assert "split test" in details["steel/test"]


def test_specimens_in_several_splits(tmp_path: Path) -> None:
    images = {name: texture((60, 60), number) for number, name in enumerate("abcdef")}
    archive = _archive(
        tmp_path / "a.h5",
        images,
        a={"specimen": "S1", "split": "train"},
        b={"specimen": "S1", "split": "test"},
        c={"specimen": "S2", "split": "train"},
        d={"specimen": "S2", "split": "train"},
        e={"specimen": "S2"},
        f={"split": "test"},
    )
    findings = check(archive)
    assert _kinds(findings) == [("specimen", ("plain/a", "plain/b"))]
    assert "specimen S1" in findings[0].detail


def test_annotated_images_without_a_split(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a.h5", [STEEL, Collection("free", STEEL.classes)]) as writer:
        for number, (stem, split, annotated) in enumerate(
            [("a", "train", True), ("b", "", True), ("pool", "", False), ("test", "test", True)]
        ):
            mask = labels((60, 60), number) if annotated else None
            writer.add(texture((60, 60), number), id=f"steel/{stem}", dataset="steel", split=split, mask=mask)
        writer.add(texture((60, 60), 9), id="free/a", dataset="free", mask=labels((60, 60)))
    findings = check(Archive(tmp_path / "a.h5"))
    assert _kinds(findings) == [("split", ("steel/b",))]
    assert "1 of 3" in findings[0].detail


def test_a_shard_that_differs_from_its_manifest(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    for number in range(3):
        Image.fromarray(texture((60, 60), number)).save(tmp_path / "x" / f"{number}.png")
    build(plan([tmp_path / "x"]), tmp_path / "out", BuildOptions(), shard_bytes=4000)
    assert check(Archive(tmp_path / "out")) == []
    shard = next((tmp_path / "out").glob("shard-*.h5"))
    with h5py.File(shard, "r+") as file:
        images = file["images"][()]
        images["um_per_pixel"] = 0.5
        file["images"][...] = images
    findings = check(Archive(tmp_path / "out"))
    assert [finding.kind for finding in findings] == ["checksum"]
    assert str(shard) in findings[0].detail


def test_the_contact_sheet_shows_every_collection(tmp_path: Path) -> None:
    write_mixed(tmp_path / "a.h5")
    archive = Archive(tmp_path / "a.h5")
    contact_sheet(archive, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        sheet = np.asarray(image)
    assert sheet.shape[2] == 3
    # The tint of an annotated class is on the sheet: the legend's own colour, exactly.
    for colour in class_colours(STEEL)[1:]:
        assert (sheet == colour).all(axis=2).any()
    assert not class_colours(STEEL)[0].any()
