"""One annotated square: nothing outside of it is ever seen as annotated, in fine-tuning or in pretraining."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pscl_hpc.archive import IGNORE_INDEX, Archive, Collection, ShardWriter
from pscl_hpc.archive.windows import covering_square
from pscl_hpc.config import resolve_config
from pscl_hpc.errors import UserError
from pscl_hpc.models.unet import UNetConfig
from pscl_hpc.pretraining import PretrainData
from pscl_hpc.pretraining.config import PretrainConfig
from pscl_hpc.segmentation.config import FinetuneConfig
from pscl_hpc.segmentation.data import WindowDataset, select_data

SIZE = (60, 90)


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of noise: every window tells by its pixels where it lies."""
    path = tmp_path_factory.mktemp("marked") / "marked.h5"
    random = np.random.default_rng(5)
    with ShardWriter(path, [Collection("alloy", ("a", "b", "c", "d"), ignore_classes=(3,))]) as writer:
        for name, split in (("ref", "train"), ("more", "train"), ("val", "val")):
            mask = random.choice(
                np.array([0, 1, 2, 3, IGNORE_INDEX], np.uint8), SIZE, p=[0.6, 0.3, 0.005, 0.02, 0.075]
            )
            image = random.integers(0, 256, SIZE).astype(np.uint8)
            writer.add(image, id=f"alloy/{name}", dataset="alloy", mask=mask, split=split)
    return path


def finetune_config(path: Path, **changes: Any) -> FinetuneConfig:
    tree = {"kind": "finetune", "data": {"archive": str(path)}, "references": ["alloy/ref"], "flip": False}
    config = resolve_config(
        {**tree, "rotate": False, "crop": [32, 32], "batch_size": 8, **changes}, source="test"
    )
    assert isinstance(config, FinetuneConfig)
    return config


def place(image: np.ndarray, whole: np.ndarray) -> tuple[int, int]:
    """Where a window lies in its image, by its pixels."""
    height, width = image.shape
    for top in range(whole.shape[0] - height + 1):
        for left in range(whole.shape[1] - width + 1):
            if whole[top, left] == image[0, 0] and np.array_equal(
                whole[top : top + height, left : left + width], image
            ):
                return top, left
    raise AssertionError("the window is not in the image")


@pytest.mark.parametrize(("side", "crop"), [(20, 32), (32, 32), (40, 16), (70, 32)])
def test_fine_tuning_sees_the_square_and_nothing_else(marked: Path, side: int, crop: int) -> None:
    config = finetune_config(marked, square=side, crop=[crop, crop])
    with Archive(marked) as archive:
        data = select_data(config, archive)
        record = archive.find("alloy/ref")
        mask, whole = archive.read_mask(record.index), archive.read_unit(record.index)[0]
        top, left, height, width = covering_square(mask, (0, 1, 2), side)
        assert (height, width) == (min(side, SIZE[0]), min(side, SIZE[1]))
        expected = np.full(SIZE, IGNORE_INDEX, np.uint8)
        expected[top : top + height, left : left + width] = data.classes.without_ignored(
            mask[top : top + height, left : left + width]
        )
        assert data.pixels.tolist() == [int((expected == index).sum()) for index in range(4)]
        windows = WindowDataset(archive, data.references, data.classes, config, trunk=UNetConfig())
        seen = np.zeros(SIZE, bool)
        for step in range(6):
            batch = windows[step]
            for image, target in zip(batch.images.numpy()[:, 0], batch.targets.numpy(), strict=True):
                y, x = place(image, whole)
                np.testing.assert_array_equal(target, expected[y : y + crop, x : x + crop])
                assert (target != IGNORE_INDEX).any()
                seen[y : y + crop, x : x + crop] |= target != IGNORE_INDEX
        if crop >= side:
            # Every window holds the whole square.
            np.testing.assert_array_equal(seen, expected != IGNORE_INDEX)


def test_without_a_square_all_is_annotated(marked: Path) -> None:
    config = finetune_config(marked)
    with Archive(marked) as archive:
        data = select_data(config, archive)
        mask = archive.read_mask(archive.find("alloy/ref").index)
        assert data.pixels.tolist() == [int((mask == index).sum()) for index in range(3)] + [0]


@pytest.mark.parametrize("crop", ["covering", "random"])
@pytest.mark.parametrize("side", [16, 40])
def test_templates_come_from_the_square_alone(marked: Path, side: int, crop: str) -> None:
    tree = {
        "kind": "pretrain",
        "data": {"archive": str(marked), "splits": ["train"]},
        "views": {"size": [24, 24]},
        "method": {"name": "pscl-simclr", "reference": {"ids": ["alloy/ref"], "square": side, "crop": crop}},
        "batch_size": 2,
    }
    config = resolve_config(tree, source="test")
    assert isinstance(config, PretrainConfig)
    with Archive(marked) as archive:
        record, other = archive.find("alloy/ref"), archive.find("alloy/more")
        mask, whole = archive.read_mask(record.index), archive.read_unit(record.index)[0]
        top, left, height, width = covering_square(mask, (0, 1, 2), side)
        expected = np.full(SIZE, IGNORE_INDEX, np.uint8)
        expected[top : top + height, left : left + width] = mask[top : top + height, left : left + width]
        data = PretrainData(archive, config)
        for number in range(8):
            batch = data[number]
            y, x = place(batch.images[0, 0].numpy(), whole)
            np.testing.assert_array_equal(batch.labels[0].numpy(), expected[y : y + 24, x : x + 24])
            # Of unlabelled images masks stay whole: they measure purity and teach nothing.
            y, x = place(batch.images[1, 0].numpy(), archive.read_unit(other.index)[0])
            np.testing.assert_array_equal(
                batch.labels[1].numpy(), archive.read_mask(other.index)[y : y + 24, x : x + 24]
            )


def test_a_square_that_shows_nothing_that_is_learnt_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.h5"
    mask = np.full(SIZE, IGNORE_INDEX, np.uint8)
    with ShardWriter(path, [Collection("alloy", ("a", "b"))]) as writer:
        writer.add(np.zeros(SIZE, np.uint8), id="alloy/ref", dataset="alloy", mask=mask, split="train")
    with Archive(path) as archive, pytest.raises(UserError, match="alloy/ref"):
        select_data(finetune_config(path, square=16, validation_split=""), archive)
