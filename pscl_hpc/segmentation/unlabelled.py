"""The unlabelled images of semi-supervised fine-tuning, and random windows of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from pscl_hpc.archive import IGNORE_INDEX, Archive, ImageRecord
from pscl_hpc.archive.windows import draw_window, read_window
from pscl_hpc.config import FinetuneConfig, SemiSupervisedConfig
from pscl_hpc.errors import UserError
from pscl_hpc.seeding import Slots, numpy_generator
from pscl_hpc.segmentation.data import Placing, WindowDataset, Windows, rank_slots


def select_unlabelled(
    config: FinetuneConfig, settings: SemiSupervisedConfig, archive: Archive, home: str
) -> tuple[ImageRecord, ...]:
    """The images to train on without masks; by default those of ``home``, the collection of the references.

    The references are included: their pixels that are not annotated are unlabelled, too.

    Raises:
        UserError: a split for scoring or one that is not in the archive is named, or no image is selected.
    """
    key = "data.splits" if settings.splits is None else "semi_supervised.splits"
    splits = config.data.splits if settings.splits is None else settings.splits
    for split in splits:
        if split.startswith(("val", "test")) or (split and split == config.validation_split):
            raise UserError(
                f"{key}: '{split}' is for scoring, but semi-supervised fine-tuning would train on its images; "
                "name training splits in semi_supervised.splits"
            )
    archive.check_names(splits=splits, key=key)
    datasets = (home,) if settings.datasets is None else settings.datasets
    found = tuple(
        record
        for record in archive.select(datasets=datasets, splits=splits)
        if not (record.specimen and record.specimen in config.data.exclude_specimens)
    )
    if not found:
        raise UserError(
            f"semi_supervised: {archive.path} has no image of the datasets {list(datasets)} in the splits "
            f"{list(splits)}; set semi_supervised.datasets or semi_supervised.splits"
        )
    return found


class MixedWindows(Dataset[Windows]):
    """Batches by step: the annotated windows, then ``count`` unlabelled ones, whose targets are 255 everywhere.

    Each window is a function of (seed, step, slot in its part of the batch). Masks of unlabelled images are not used.

    Raises:
        UserError: ``count`` cannot be divided equally among the ranks of ``annotated``.
    """

    def __init__(self, annotated: WindowDataset, unlabelled: Sequence[ImageRecord], count: int) -> None:
        self.annotated = annotated
        self.unlabelled = tuple(unlabelled)
        self.count = count
        self._own = rank_slots(count, "semi_supervised.batch_size", annotated.rank, annotated.ranks)
        first = annotated.slots
        places = (*first.places, *(first.total + slot for slot in self._own))
        self.slots = Slots(places, first.total + count)

    def __len__(self) -> int:
        return len(self.annotated)

    def __getitem__(self, step: int) -> Windows:
        first = self.annotated[step]
        cut = [self._window(step, slot) for slot in self._own]
        images = torch.from_numpy(np.stack([image for image, _ in cut]))
        unknown = torch.full((len(cut), *images.shape[2:]), IGNORE_INDEX, dtype=first.targets.dtype)
        return Windows(
            torch.cat((first.images, images)),
            torch.cat((first.targets, unknown)),
            [*first.ids, *(name for _, name in cut)],
            self.slots,
        )

    def image_ids(self, step: int) -> list[str]:
        """The images of the batch of all ranks."""
        return [
            *self.annotated.image_ids(step),
            *(self._draw(step, slot)[0].id for slot in range(self.count)),
        ]

    def _draw(self, step: int, slot: int) -> tuple[ImageRecord, np.random.Generator]:
        rng = numpy_generator(self.annotated.config.seed, "unlabelled window", step, slot)
        return self.unlabelled[int(rng.integers(len(self.unlabelled)))], rng

    def _window(self, step: int, slot: int) -> tuple[npt.NDArray[np.float32], str]:
        record, rng = self._draw(step, slot)
        placing = Placing.draw(self.annotated.config, rng)
        window = draw_window(record, placing.size, rng)
        image, _ = read_window(
            self.annotated.archive, record, window, placing.size, channels=self.annotated.channels
        )
        return placing.apply(image), record.id
