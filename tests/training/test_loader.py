"""Batches in pinned memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from pscl_hpc.archive import Archive
from pscl_hpc.pretraining import Batch, PretrainData
from pscl_hpc.seeding import Slots
from pscl_hpc.segmentation.data import Windows
from tests.helpers import small_archive, small_config


def test_batches_of_both_tasks_can_be_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[int] = []

    def pin(tensor: torch.Tensor, *_: object) -> torch.Tensor:  # real pinned memory needs a GPU
        pinned.append(id(tensor))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    archive = small_archive(tmp_path / "a.h5")
    with Archive(archive) as opened:
        batch = PretrainData(opened, small_config(archive, tmp_path / "run"))[0]
    found = pin_memory(batch)
    assert isinstance(found, Batch)
    assert (found.ids, found.slots, found.references) == (batch.ids, batch.slots, batch.references)
    tensors = (batch.images, batch.labels, batch.comparable, batch.production_batches)
    assert sorted(pinned) == sorted(id(tensor) for tensor in tensors)
    pinned.clear()
    windows = Windows(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4), ["a", "b"], Slots.all(2))
    found = pin_memory(windows)
    assert isinstance(found, Windows)
    assert (found.ids, found.slots) == (windows.ids, windows.slots)
    assert sorted(pinned) == sorted((id(windows.images), id(windows.targets)))
