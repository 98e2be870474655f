"""Which images a step learns from, and what is shown of them: order, references, windows, views."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pscl_hpc.archive import Archive, Collection, ShardWriter
from pscl_hpc.archive.windows import covering_square, draw_window, restrict
from pscl_hpc.pretraining import PretrainData, make_views
from pscl_hpc.seeding import numpy_generator
from tests.helpers import small_config


@pytest.mark.parametrize("in_pool", [False, True])
def test_order_visits_every_image_once_an_epoch(archive: Path, tmp_path: Path, in_pool: bool) -> None:
    method = {"name": "pscl-simclr", "reference": {"ids": ["alloy/0"], "in_pool": in_pool}}
    config = small_config(archive, tmp_path / "run", batch_size=1, method=method)
    with Archive(archive) as opened:
        data = PretrainData(opened, config)
        ids = [image for number in range(len(data.records)) for image in data[number].ids[1:]]
    assert len(data.records) == (6 if in_pool else 5)
    assert ("alloy/0" in ids) == in_pool
    assert sorted(ids) == sorted(record.id for record in data.records)


@pytest.mark.parametrize("batch_size", [2, 3, 4])
def test_no_image_is_twice_in_an_epoch_of_whole_passes(
    archive: Path, tmp_path: Path, batch_size: int
) -> None:
    config = small_config(archive, tmp_path / "run", batch_size=batch_size)
    with Archive(archive) as opened:
        data = PretrainData(opened, config)
    passes, seen = 5 // batch_size, set()
    assert len(data.records) == 5
    for epoch in range(20):
        numbers = range(epoch * passes, (epoch + 1) * passes)
        ids = [image for number in numbers for image in data.ids(number)[1:]]
        assert len(set(ids)) == len(ids) == passes * batch_size
        seen |= set(ids)
    assert seen == {record.id for record in data.records}, "none is left out for ever"


@pytest.mark.parametrize("side", [0, 40])
@pytest.mark.parametrize("crop", ["covering", "random"])
def test_the_window_of_a_reference_shows_the_most_classes(tmp_path: Path, crop: str, side: int) -> None:
    mask = np.zeros((60, 70), np.uint8)
    mask[10:16, 5:45], mask[20:50, 30:36], mask[40:45, 8:20], mask[30:60, 50:] = 1, 2, 3, 4
    pixels = np.random.default_rng(1).integers(0, 256, mask.shape).astype(np.uint8)
    path = tmp_path / "a.h5"
    with ShardWriter(path, [Collection("alloy", (*"abcde",), ignore_classes=(4,))]) as writer:
        for name in ("ref", "other", "third"):
            writer.add(pixels, id=f"alloy/{name}", dataset="alloy", mask=mask, split="train")
    reference = {"ids": ["alloy/ref"], "crop": crop, "square": side}
    method = {"name": "pscl-simclr", "reference": reference}
    config = small_config(path, tmp_path / "run", batch_size=2, views={"size": [24, 24]}, method=method)
    best = []
    with Archive(path) as opened:
        data, record = PretrainData(opened, config), opened.find("alloy/ref")
        region = covering_square(mask, (0, 1, 2, 3), side) if side else (0, 0, *mask.shape)
        annotated = restrict(mask, (0, 0, *mask.shape), region)
        for number in range(8):
            random = numpy_generator(config.seed, "windows", number, 0)
            windows = [draw_window(record, (24, 24), random, region) for _ in range(16)]
            scores = []
            for top, left, height, width in windows:
                part = annotated[top : top + height, left : left + width]
                counts = [int((part == index).sum()) for index in range(4)]
                scores.append((4 - counts.count(0), min(filter(None, counts), default=0)))
            best.append(scores.index(max(scores)) if crop == "covering" else 0)
            top, left, height, width = windows[best[-1]]
            inside = np.s_[top : top + height, left : left + width]
            batch = data[number]
            np.testing.assert_array_equal((batch.images[0, 0] * 255).round(), pixels[inside])
            np.testing.assert_array_equal(batch.labels[0], annotated[inside])
    assert crop == "random" or len(set(best)) > 4


def test_both_views_have_intensity_changes_of_their_own(archive: Path, tmp_path: Path) -> None:
    jitter = {"brightness": 0.4, "contrast": 0.0, "probability": 1.0}
    views = {"size": [32, 32], "flip": False, "rotate": False, "crop": 0.0, "jitter": jitter}
    config = small_config(archive, tmp_path / "run", views=views)
    with Archive(archive) as opened:
        batch = PretrainData(opened, config)[0]
    made = make_views(batch, config, 0, torch.device("cpu"))
    dark = batch.images * (batch.images < 0.7)  # what cannot reach 1, times the factor that is looked for
    factors = torch.stack(
        [(view * (batch.images < 0.7)).sum(dim=(1, 2, 3)) for view in (made.query, made.key)]
    )
    factors /= dark.sum(dim=(1, 2, 3))
    assert len(set(factors.flatten().round(decimals=3).tolist())) == factors.numel() == 8
    assert 0.6 <= float(factors.min()) < 0.95
    assert 1.05 < float(factors.max()) <= 1.4
