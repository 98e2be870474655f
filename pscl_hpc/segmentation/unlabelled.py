"""The images that semi-supervised fine-tuning learns from without their masks, and the windows cut from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from pscl_hpc.archive import IGNORE_INDEX, Archive, ImageRecord
from pscl_hpc.archive.windows import draw_window, read_window
from pscl_hpc.errors import UserError
from pscl_hpc.seeding import numpy_generator
from pscl_hpc.segmentation.config import FinetuneConfig, SemiSupervisedConfig
from pscl_hpc.segmentation.data import Placing, WindowDataset, Windows


def select_unlabelled(
    config: FinetuneConfig, settings: SemiSupervisedConfig, archive: Archive, home: str
) -> tuple[ImageRecord, ...]:
    """The images to learn from without masks; those of ``home``, the references' collection, by default.

    The references are among them: where they are not annotated they are images like any other.

    Raises:
        UserError: a split that scores the result is named, or one that is not in the archive, or there is no image.
    """
    key = "data.splits" if settings.splits is None else "semi_supervised.splits"
    splits = config.data.splits if settings.splits is None else settings.splits
    for split in splits:
        if split.startswith(("val", "test")) or (split and split == config.validation_split):
            raise UserError(
                f"{key}: '{split}' scores the result, and semi-supervised fine-tuning would learn from its images; "
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
            f"{list(splits)}; name others in semi_supervised.datasets or semi_supervised.splits"
        )
    return found


class MixedWindows(Dataset[Windows]):
    """Batches by step: the annotated windows, then windows of the other images, in whose targets nothing is annotated.

    Each window is a pure function of (seed, step, place in its part of the batch). No mask of an unlabelled image
    leaves this class.
    """

    def __init__(self, annotated: WindowDataset, unlabelled: Sequence[ImageRecord], count: int) -> None:
        self.annotated = annotated
        self.unlabelled = tuple(unlabelled)
        self.count = count

    def __len__(self) -> int:
        return len(self.annotated)

    def __getitem__(self, step: int) -> Windows:
        first = self.annotated[step]
        cut = [self._window(step, slot) for slot in range(self.count)]
        images = torch.from_numpy(np.stack([image for image, _ in cut]))
        nothing = torch.full((self.count, *images.shape[2:]), IGNORE_INDEX, dtype=first.targets.dtype)
        return Windows(
            torch.cat((first.images, images)),
            torch.cat((first.targets, nothing)),
            [*first.ids, *(name for _, name in cut)],
        )

    def _window(self, step: int, slot: int) -> tuple[npt.NDArray[np.float32], str]:
        config = self.annotated.config
        rng = numpy_generator(config.seed, "unlabelled window", step, slot)
        record = self.unlabelled[int(rng.integers(len(self.unlabelled)))]
        placing = Placing.draw(config, rng)
        window = draw_window(record, placing.size, rng)
        image, _ = read_window(
            self.annotated.archive, record, window, placing.size, channels=self.annotated.channels
        )
        return placing.apply(image), record.id
