"""Archives of two kinds of texture for the tests of suggestions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from pscl_hpc.archive import Collection, ShardWriter

CLASSES = ("matrix", "carbide")


def texture(kind: str, seed: int, size: tuple[int, int] = (96, 112)) -> np.ndarray:
    """``fine`` or ``coarse`` noise, or ``both``: the left half fine, the right coarse."""
    if kind == "both":
        half = size[1] // 2
        parts = (texture("fine", seed, size)[:, :half], texture("coarse", seed, size)[:, half:])
        return np.concatenate(parts, axis=1)
    noise = np.random.default_rng(seed).normal(size=size)
    field = gaussian_filter(noise, {"fine": 0.7, "coarse": 4.0}[kind])
    return np.clip(128 + 40 * field / field.std(), 0, 255).astype(np.uint8)


def textured_archive(
    path: Path, kinds: dict[str, str], *, masks: bool = False, size: tuple[int, int] = (96, 112)
) -> Path:
    """Image id (without the collection) -> kind; a split may follow it, ``fine test``."""
    with ShardWriter(path, [Collection("steel", CLASSES)]) as writer:
        for seed, (name, kind) in enumerate(kinds.items()):
            look, _, split = kind.partition(" ")
            image = texture(look, seed, size)
            mask = np.full(image.shape, seed % 2, np.uint8) if masks else None
            writer.add(image, id=f"steel/{name}", dataset="steel", mask=mask, split=split or "train")
    return path
