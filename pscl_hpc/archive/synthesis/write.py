"""An archive of synthetic micrographs, with splits and references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pscl_hpc.archive.format import Collection
from pscl_hpc.archive.synthesis.generate import (
    FAMILIES,
    IMAGES_PER_SPECIMEN,
    batch_of,
    class_names,
    collection_name,
    production_batches,
    synthesise,
)
from pscl_hpc.archive.writer import ShardWriter
from pscl_hpc.errors import UserError
from pscl_hpc.progress import Progress

REFERENCES = 5
"""At most this many reference images per collection."""
MIN_IMAGES_PER_FAMILY = 3
"""One specimen each for train, val and test."""
_TEST_SHARE, _VAL_SHARE = 0.25, 0.15


def _plan(family: str, images: int) -> dict[int, str]:
    """Index -> split of one family's ``images`` pictures; both fields of a specimen are in one split.

    The first specimens are for training, so that all production batches are in training when there are enough. A batch
    with inverted contrast is out of distribution: it is a test split of its own once every batch has a specimen.
    """
    specimens = max(MIN_IMAGES_PER_FAMILY, -(-images // IMAGES_PER_SPECIMEN))
    apart = specimens >= len(production_batches(family))
    inverted = {s for s in range(specimens) if apart and batch_of(family, s).inverted}
    usual = specimens - len(inverted)
    test = max(1, round(_TEST_SHARE * usual))
    val = max(1, round(_VAL_SHARE * usual))
    names = iter(["train"] * (usual - test - val) + ["val"] * val + ["test"] * test)
    splits = ["test_ood" if s in inverted else next(names) for s in range(specimens)]
    # First fields of all specimens before second fields, so that no specimen is empty.
    order = [
        s * IMAGES_PER_SPECIMEN + field for field in range(IMAGES_PER_SPECIMEN) for s in range(specimens)
    ]
    return {index: splits[index // IMAGES_PER_SPECIMEN] for index in sorted(order[:images])}


def _image_id(family: str, index: int) -> str:
    return f"{collection_name(family)}/{family}_{index:06d}"


def _references(family: str, plan: Mapping[int, str], seed: int, size: tuple[int, int]) -> tuple[str, ...]:
    """Ids of the first training images with all classes, at most :data:`REFERENCES`, from different specimens first.

    If no training image has all classes, the one with the most is the only reference.
    """
    train = [index for index, split in plan.items() if split == "train"]
    train.sort(key=lambda index: (index % IMAGES_PER_SPECIMEN, index))
    complete: list[int] = []
    richest, most = train[0], 0
    for index in train:
        present = len(np.unique(synthesise(family, seed=seed, index=index, size=size).mask))
        if present == len(class_names(family)):
            complete.append(index)
        if present > most:
            richest, most = index, present
        if len(complete) == REFERENCES:
            break
    return tuple(_image_id(family, index) for index in sorted(complete or [richest]))


def write_synthetic_archive(
    out: Path,
    images: int,
    seed: int,
    size: tuple[int, int] = (256, 256),
    families: Sequence[str] = FAMILIES,
    *,
    progress: bool = False,
) -> Path:
    """Write an archive of synthetic micrographs, each with its exact mask.

    Args:
        out: the HDF5 file to make; it must not exist.
        images: total number of images, divided evenly among the families; at least three per family.
        seed: as in :func:`synthesise`; the archive is a pure function of (images, seed, size, families).
        size: (height, width) of every image in pixels.
        families: names in :data:`FAMILIES`; each becomes a collection ``synthetic_<family>``.
        progress: show a bar.

    Returns:
        ``out``.

    Raises:
        UserError: ``out`` exists, there are too few images, or a family, size or seed is wrong.

    About 60% of the specimens are for training, 15% for validation and 25% for testing; specimens of a batch with
    inverted contrast are in the split ``test_ood``. Each collection has up to five training images with all classes as
    references.
    """
    out = Path(out)
    names = list(dict.fromkeys(families))
    if not names:
        raise UserError(f"no synthetic family was given; choose from {', '.join(FAMILIES)}")
    least = MIN_IMAGES_PER_FAMILY * len(names)
    if images < least:
        raise UserError(
            f"{images} synthetic images are too few for {len(names)} families in three splits; make at least {least}"
        )
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} already exists; choose another output file or remove it")
    plans = {
        family: _plan(family, images // len(names) + (position < images % len(names)))
        for position, family in enumerate(names)
    }
    described = [
        Collection(
            name=collection_name(family),
            classes=class_names(family),
            references=_references(family, plan, seed, size),
        )
        for family, plan in plans.items()
    ]
    bar = Progress("drawing", images, unit="image", show=progress)
    with bar, ShardWriter(out, described) as writer:
        for family, plan in plans.items():
            for index, split in plan.items():
                picture = synthesise(family, seed=seed, index=index, size=size)
                writer.add(
                    picture.image,
                    mask=picture.mask,
                    id=_image_id(family, index),
                    dataset=collection_name(family),
                    split=split,
                    specimen=picture.specimen,
                    production_batch=picture.production_batch,
                    alloy=picture.alloy,
                    magnification=picture.magnification,
                    um_per_pixel=picture.um_per_pixel,
                    source=f"synthetic:{family}:seed={seed}:index={index}",
                )
                bar.advance()
    return out
