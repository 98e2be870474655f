"""Predictions beside masks: those of the archive or of image files, and the confusion on validation images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from pscl_hpc.archive import Archive
from pscl_hpc.archive.ingest.errors import Unreadable
from pscl_hpc.errors import UserError, did_you_mean
from pscl_hpc.files import sha256_of
from pscl_hpc.metallography.correction import Correction
from pscl_hpc.progress import Progress
from pscl_hpc.segmentation.classes import ClassList
from pscl_hpc.segmentation.evaluate import same_name
from pscl_hpc.segmentation.input_masks import InputMasks
from pscl_hpc.segmentation.metrics import ConfusionMatrix
from pscl_hpc.segmentation.predict import PredictedImage
from pscl_hpc.segmentation.trained import ImagePredictor, SegmentationConfig

NO_VALIDATION = "none"


def trained_on(config: SegmentationConfig, compared: InputMasks) -> list[str]:
    """The files with masks that the run was trained on, by their content."""
    path = Path(config.data.archive)
    if not path.exists():
        return []
    archive = Archive(path)
    known = {archive.rows[archive.find(name).index].sha256 for name in config.references}
    return [name for name in compared.files if sha256_of(Path(name)) in known]


class MaskOf:
    """The mask to compare a prediction with."""

    def __init__(self, classes: ClassList, archive: Archive | None, files: InputMasks | None) -> None:
        self._classes = classes
        self._archive = archive
        self._files = files
        self.skipped: list[tuple[str, str]] = []
        """Masks that cannot be used: image and reason."""

    def read(self, image: PredictedImage, shape: tuple[int, ...]) -> npt.NDArray[np.uint8] | None:
        if self._archive is not None:
            record = self._archive.find(image.source)
            collection = self._archive.collections[record.dataset]
            if record.has_mask and ClassList.of(collection) == self._classes:
                return self._archive.read_mask(record.index)
        if self._files is not None:
            try:
                return self._files.read(image.source, shape[0], shape[1], image.cropped)
            except Unreadable as error:
                self.skipped.append(
                    (image.source, f"it is measured, but not compared with its mask: {error}")
                )
        return None


def validation_correction(
    config: SegmentationConfig, predictor: ImagePredictor, validation: str, progress: bool
) -> Correction | None:
    """The confusion on the validation images of the run's archive; None if there are none."""
    if validation == NO_VALIDATION:
        return None
    path = Path(config.data.archive)
    if not path.exists():
        if validation:
            raise UserError(f"{path}: the archive of the run is not found, so --validation cannot be used")
        return None
    archive = Archive(path)
    name = same_name(config.references[0].partition("/")[0], archive.collections)
    collection = archive.collections.get(name)
    annotated = [
        record
        for record in (archive.select(datasets=[name], has_mask=True) if collection else [])
        if record.id not in config.references
    ]
    known = sorted({record.split for record in annotated})
    if validation and validation not in known:
        raise UserError(
            f"--validation '{validation}': {path} has no annotated images of this split"
            f"{did_you_mean(validation, known)}"
        )
    chosen = [
        record
        for record in annotated
        if (record.split == validation if validation else record.split.startswith("val"))
    ]
    if not chosen or collection is None or ClassList.of(collection) != predictor.classes:
        return None
    counts = []
    with Progress("validate", len(chosen), unit="image", show=progress) as bar:
        for record in chosen:
            matrix = ConfusionMatrix(predictor.classes)
            matrix.update(predictor.archive_image(archive, record.index), archive.read_mask(record.index))
            counts.append(matrix.counts)
            bar.advance(record.id)
    return Correction(tuple(counts), " and ".join(sorted({record.split for record in chosen})))
