"""Choice of references and validation images, and the windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pscl_hpc.archive import Archive, Collection, ShardWriter
from pscl_hpc.errors import UserError
from pscl_hpc.models.unet import UNetConfig
from pscl_hpc.segmentation import ClassList
from pscl_hpc.segmentation.annotations import class_list
from pscl_hpc.segmentation.data import FinetuneData, WindowDataset, select_data

from .helpers import ALLOY, SCRATCH, micrograph, settings


@pytest.fixture(scope="module")
def archive(archive_file: Path) -> Archive:
    return Archive(archive_file)


def windows(archive: Archive, **changes: Any) -> WindowDataset:
    config = settings(archive.path, Path("unused"), **changes)
    data = select_data(config, archive)
    return WindowDataset(archive, data.references, data.classes, config, trunk=UNetConfig())


def test_references_validation_and_pixel_counts(archive: Archive) -> None:
    names = ["alloy/train1", "alloy/train0", "alloy/train1"]
    data = select_data(settings(archive.path, Path("unused"), references=names), archive)
    assert [record.id for record in data.references] == ["alloy/train1", "alloy/train0"]
    assert [record.id for record in data.validation] == ["alloy/val0"]
    masks = np.concatenate([archive.read_mask(archive.find(name).index).ravel() for name in names[:2]])
    assert data.pixels.tolist() == [int((masks == index).sum()) for index in range(3)] + [0]


def test_an_empty_validation_split_means_none(archive: Archive) -> None:
    assert select_data(settings(archive.path, Path("unused"), validation_split=""), archive).validation == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"references": ["alloy/trian0"]}, ["alloy/trian0", "alloy/train0"]),
        ({"references": ["alloy/bare"]}, ["references", "alloy/bare"]),
        ({"references": ["alloy/blank"]}, ["references", "alloy/blank"]),
        ({"references": ["alloy/val0"]}, ["alloy/val0", "'val'", "alloy/train0"]),
        ({"references": ["alloy/test1"]}, ["alloy/test1", "'test'"]),
        ({"references": ["alloy/test1"], "data": {"splits": ["test"]}}, ["alloy/test1", "'test'"]),
        ({"references": ["alloy/train0", "other/a"]}, ["other/a", "alloy"]),
        ({"references": ["other/a"], "data": {"datasets": ["alloy"]}}, ["other/a", "data.datasets"]),
        ({"data": {"exclude_specimens": ["s0"]}}, ["alloy/train0", "s0", "exclude_specimens"]),
        ({"references": ["other/a"]}, ["validation_split", "'val'", "other"]),
        ({"validation_split": "vall"}, ["validation_split", "'vall'", "alloy"]),
        ({"validation_split": "test_ood"}, ["validation_split", "'test_ood'"]),
        ({"loss": {"class_weights": [1, 2]}}, ["loss.class_weights", "2", "4", "carbide"]),
    ],
)
def test_input_that_does_not_fit_is_refused(
    archive: Archive, changes: dict[str, Any], words: list[str]
) -> None:
    data = {"archive": str(archive.path), **changes.pop("data", {})} if "data" in changes else None
    config = settings(archive.path, Path("unused"), **changes, **({"data": data} if data else {}))
    with pytest.raises(UserError) as caught:
        select_data(config, archive)
    for word in words:
        assert word in str(caught.value)


def test_oversampled_windows_show_a_rare_class(tmp_path: Path) -> None:
    """Three pixels of 96 x 96: every window on a pixel of a class, half of them of the rare one."""
    with ShardWriter(tmp_path / "a.h5", [Collection("alloy", ("matrix", "crack"))]) as writer:
        mask = np.zeros((96, 96), np.uint8)
        mask[70:73, 20] = 1
        writer.add(micrograph(0, 96, 96)[0], mask=mask, dataset="alloy", id="alloy/a", split="train")
    changes = {"references": ["alloy/a"], "validation_split": "", "crop": [16, 16], "batch_size": 8}
    with Archive(tmp_path / "a.h5") as archive:
        shares = {}
        for oversample in (0.0, 1.0):
            for turned in (False, True):
                found = windows(archive, **changes, oversample=oversample, any_angle=turned)
                targets = np.concatenate([found[step].targets.numpy() for step in range(20)])
                shares[oversample, turned] = float((targets == 1).any(axis=(1, 2)).mean())
        square = windows(archive, **changes, oversample=1.0, square=32)
        assert set(np.unique(square[0].targets)) <= {0, 1, 255}
    assert shares[0.0, False] < 0.1
    assert 0.4 < shares[1.0, False] < 0.6
    assert 0.3 < shares[1.0, True] < 0.6


def test_windows_depend_on_seed_step_and_place_alone(archive: Archive) -> None:
    first, again = windows(archive), windows(archive)
    for step in (5, 0):
        assert np.array_equal(first[step].images, again[step].images)
        assert np.array_equal(first[step].targets, again[step].targets)
    assert not np.array_equal(first[0].images, first[1].images)
    assert not np.array_equal(first[0].images[0], first[0].images[1])
    assert not np.array_equal(first[0].images, windows(archive, seed=11)[0].images)


def test_image_and_mask_are_turned_together(archive: Archive) -> None:
    # Without noise the grey level tells the class, up to the scratch and the corner without annotation.
    batches = windows(archive, crop=[24, 40], batch_size=4)
    for step in range(6):
        batch = batches[step]
        assert batch.images.shape == (4, 1, 24, 40)
        assert batch.targets.shape == (4, 24, 40)
        levels = [batch.images[:, 0][batch.targets == index].mean() * 255 for index in range(3)]
        assert levels == pytest.approx([90, 190, 20], abs=6)


def test_windows_cover_all_turns_flips_and_places(archive: Archive) -> None:
    image = archive.read_unit(archive.find("alloy/train0").index)[0]
    parts = {}
    for turns in range(4):
        for flip in (False, True):
            pixels = np.rot90(image[::-1] if flip else image, turns)
            view = np.lib.stride_tricks.sliding_window_view(pixels, (32, 32)).reshape(-1, 1024)
            parts.update({row.tobytes(): (turns, flip, place) for place, row in enumerate(view)})
    drawn = windows(archive)
    found = {parts[window.numpy().tobytes()] for step in range(60) for window in drawn[step].images[:, 0]}
    assert {(turns, flip) for turns, flip, _ in found} == {(t, f) for t in range(4) for f in (False, True)}
    assert len(found) > 60
    still = windows(archive, flip=False, rotate=False)
    found = {parts[window.numpy().tobytes()] for step in range(20) for window in still[step].images[:, 0]}
    assert {(turns, flip) for turns, flip, _ in found} == {(0, False)}


def test_ignored_classes_are_not_annotated(archive: Archive) -> None:
    drawn = windows(archive)
    values = set(np.unique(np.concatenate([drawn[step].targets.ravel() for step in range(10)])).tolist())
    assert values == {0, 1, 2, 255}
    assert SCRATCH in archive.read_mask(archive.find("alloy/train0").index)


def test_all_references_are_used(archive: Archive) -> None:
    drawn = windows(archive, references=["alloy/train0", "alloy/train1"])
    assert {name for step in range(10) for name in drawn[step].ids} == {"alloy/train0", "alloy/train1"}


def test_a_smaller_image_is_mirrored_with_its_mask(archive: Archive) -> None:
    drawn = windows(archive, crop=[64, 80], flip=False, rotate=False)
    image, target = drawn[0].images[0, 0].numpy(), drawn[0].targets[0].numpy()
    record = archive.find("alloy/train0")
    assert image.shape == target.shape == (64, 80)
    truth = ClassList.of(ALLOY).without_ignored(archive.read_mask(record.index))
    assert np.array_equal(image[:48, :56], archive.read_unit(record.index)[0])
    assert np.array_equal(target[:48, :56], truth)
    assert np.array_equal(image[48:], image[32:48][::-1])
    assert np.array_equal(target[:, 56:], target[:, 32:56][:, ::-1])


def test_windows_of_a_sparse_annotation_show_some_of_it(tmp_path: Path) -> None:
    image, mask = micrograph(0, 96, 96)
    sparse = np.full_like(mask, 255)
    sparse[40:56, 40:56] = mask[40:56, 40:56]
    with ShardWriter(tmp_path / "a.h5", [ALLOY]) as writer:
        writer.add(image, mask=sparse, id="alloy/train0", dataset="alloy", split="train")
    drawn = windows(Archive(tmp_path / "a.h5"), validation_split="", batch_size=4)
    shown = [(target != 255).any() for step in range(20) for target in drawn[step].targets]
    assert np.mean(shown) > 0.9


def test_references_must_show_more_than_one_class(tmp_path: Path) -> None:
    """And classes that they do not show are known before training."""
    image, mask = micrograph(0)
    with ShardWriter(tmp_path / "a.h5", [ALLOY]) as writer:
        for name, shown in (("matrix", mask * 0), ("two", np.where(mask == 2, 0, mask)), ("all", mask)):
            writer.add(image, mask=shown, id=f"alloy/{name}", dataset="alloy", split="train")
    archive = Archive(tmp_path / "a.h5")

    def data(*names: str) -> FinetuneData:
        references = [f"alloy/{name}" for name in names]
        return select_data(
            settings(archive.path, Path("unused"), references=references, validation_split=""), archive
        )

    with pytest.raises(UserError, match=r"references: alloy/matrix.*'matrix'"):
        data("matrix")
    assert data("two").unseen == ("void",)
    assert data("matrix", "all").unseen == ()


def test_too_few_classes_say_why(archive_file: Path) -> None:
    with Archive(archive_file) as archive:
        with pytest.raises(UserError, match="ignore_classes"):
            class_list(Collection("x", ("a", "b"), ignore_classes=(0,)), archive)
        with pytest.raises(UserError, match="name its classes"):
            class_list(Collection("x", ("a",)), archive)
