"""Predictions for image files or images of an archive: class-index PNGs, colour overlays and maps of confidence.

Each file is first stored in a temporary archive with the ingest options of the run's annotated images (see
``ingest_options``), so that files of any size and bit depth are scaled and read like the training images. Rows cropped
from the bottom edge appear in the pictures without a class.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from pscl_hpc.archive import IGNORE_INDEX, Archive, ImageRecord
from pscl_hpc.archive.ingest.errors import Unreadable
from pscl_hpc.archive.options import AUTO_CROP, IngestOptions, options_to_tree
from pscl_hpc.archive.single_file import temporary_archive
from pscl_hpc.classifiers import CLASSIFIER_FILE
from pscl_hpc.errors import UserError
from pscl_hpc.files import sha256_of, write_bytes
from pscl_hpc.models import MODEL_FILE
from pscl_hpc.progress import Progress
from pscl_hpc.segmentation.config import InferenceOptions
from pscl_hpc.segmentation.evaluate import PREDICTIONS
from pscl_hpc.segmentation.finished import Finished
from pscl_hpc.segmentation.inference import Predictor
from pscl_hpc.segmentation.ingest_options import (
    FileOptions,
    choose_options,
    colour_warnings,
    fixed_ranges,
    intensity_warnings,
    mismatch_warnings,
    model_warnings,
)
from pscl_hpc.segmentation.input_files import list_files
from pscl_hpc.segmentation.pictures import archive_overlay, picture_names, png_bytes
from pscl_hpc.segmentation.trained import ImagePredictor, open_run

FILES = "files"
"""Default output folder in ``RUN/predictions``."""


@dataclass(frozen=True)
class PredictedImage:
    """The output files of one image, or of one page of a file."""

    source: str
    labels: str
    """Path of the class-index PNG."""
    overlay: str
    """Path of the micrograph with the classes in colour."""
    cropped: int = 0
    """Rows cropped from the bottom edge: class 255, and without colour in the overlay."""
    um_per_pixel: float | None = None
    """Micrometres per pixel where the file or the archive tells."""
    confidence: str = ""
    """Path of the map of confidence: the probability of the predicted class as 0 to 255; empty if not asked for."""
    mean_confidence: float | None = None
    """Mean of that map, 0 to 1, without cropped rows."""


@dataclass
class PredictReport:
    """The result of :func:`predict`."""

    folder: Path
    written: list[PredictedImage] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Image or file, and the reason."""
    options: IngestOptions | None = None
    """Ingest options of the files; None for images of an archive."""
    warnings: list[str] = field(default_factory=list)

    @property
    def bars(self) -> list[tuple[str, int]]:
        """Files in which an information bar was detected, and its rows."""
        automatic = self.options is not None and self.options.crop_bottom == AUTO_CROP
        return [(image.source, image.cropped) for image in self.written if automatic and image.cropped]

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            **asdict(self),
            "folder": str(self.folder),
            "skipped": [{"source": source, "reason": reason} for source, reason in self.skipped],
            "options": options_to_tree(self.options) if self.options is not None else None,
        }


def predict(
    run: str | Path,
    images: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    archive: str | Path | None = None,
    percentiles: tuple[float, float] | None = None,
    luma: bool | None = None,
    crop_bottom: int | None = None,
    page: int | None = None,
    common_range: bool | None = None,
    confidence: bool = False,
    resume: bool = False,
    progress: bool = False,
    **inference: Unpack[InferenceOptions],
) -> PredictReport:
    """Segment images with a fine-tuned run or a classifier.

    A folder stands for the images that ``archive build`` would read from it; its hidden files and files of other kinds
    are reported as skipped. So are images that cannot be read, and images whose output would overwrite a file with
    other content.

    Args:
        run: A finished fine-tuning run or classifier.
        images: Image files and folders, or image ids if ``archive`` is given.
        out: Output folder, by default ``RUN/predictions/files``. Images inside it are not taken as input.
        archive: Read the images from this archive.
        percentiles, luma, crop_bottom, page, common_range: For files, fields of :class:`IngestOptions`; by default those
            of the annotated images of the run.
        confidence: Also write a map of confidence for each image.
        resume: The output folder belongs to this command: files with other content are overwritten, and images that an
            earlier call has segmented with the same model and pixels are not segmented again.
        progress: Show a progress bar if the output is a terminal.
        inference: Fields of :class:`InferenceConfig`; by default as in the configuration of the run.

    Raises:
        UserError: the run is not a finished one that segments, ``out`` is not writable, the ingest options are ambiguous,
            or no image could be segmented.
    """
    if not images:
        raise UserError("predict: no image is named; give at least one file or folder")
    values = {
        "percentiles": percentiles,
        "luma": luma,
        "crop_bottom": crop_bottom,
        "page": page,
        "common_range": common_range,
    }
    given = {name: value for name, value in values.items() if value is not None}
    if archive is not None and given:
        raise UserError(
            "predict: --percentiles, --colour, --crop-bottom, --page and --range apply to files only; leave them out "
            "with --archive"
        )
    folder, _, predictor = open_run(run, **inference)
    report = PredictReport(Path(out) if out is not None else folder.path / PREDICTIONS / FILES)
    finished = None
    if resume:
        finished = Finished(report.folder, f"{sha256_of(_model_file(folder.path))} {predictor.inference}")
    writer = _Writer(predictor, confidence, finished)
    names = list(dict.fromkeys(map(str, images)))
    found: list[tuple[str, ImageRecord]] = []
    source = Archive(archive) if archive is not None else None
    choice = choose_options(folder, given) if source is None else None
    if source is None:
        names, report.skipped = list_files(names, report.folder)
    ranges = fixed_ranges(folder, choice.options) if choice is not None else {}
    stems = _stems(names) if source is None else _stems_of_ids(names, source)
    listed = len(report.skipped)
    _make_folder(report.folder)
    with Progress("predict", len(names), unit="image", show=progress) as bar:
        for name in names:
            try:
                if source is not None:
                    found.append((name, _segment_id(writer, name, source, stems[name], report)))
                elif choice is not None:
                    found += _segment_file(writer, name, choice, ranges, stems[name], report)
            except (Unreadable, UserError) as error:
                report.skipped.append((name, str(error)))
            bar.advance(name)
    if choice is not None:
        report.options = choice.options
        report.warnings += choice.warnings()
    else:
        report.warnings = mismatch_warnings(folder, [record for _, record in found])
    report.warnings += intensity_warnings(folder, found) + model_warnings(folder, found)
    if isinstance(predictor, Predictor) and predictor.channels == 1:
        report.warnings += colour_warnings(folder, found)
    if not report.written:
        name, reason = (report.skipped[listed:] or report.skipped)[0]  # rather an image than another file
        others = f" (and {len(report.skipped) - 1} others)" if len(report.skipped) > 1 else ""
        raise UserError(f"no image could be segmented: {name}{others}: {reason}")
    return report


def _segment_file(
    writer: _Writer,
    name: str,
    choice: FileOptions,
    ranges: dict[str, tuple[float, float]],
    stem: str,
    report: PredictReport,
) -> list[tuple[str, ImageRecord]]:
    """Segment each page of a file; returns the name and the record of each."""
    found = []
    opened = temporary_archive(
        Path(name), report.folder, choice.options, unsure=choice.guessed, ranges=ranges
    )
    with opened as (archive, pages):
        for number, page in enumerate(pages):
            target = report.folder / (f"{stem}#{number}" if len(pages) > 1 else stem)
            report.written.append(writer.write(archive, page.index, page.bar, name, target))
            choice.note(name, page.sensitive)
            found.append((name, archive.records[page.index]))
            if page.remark:
                report.warnings.append(f"{name}: {page.remark}")
    return found


def _segment_id(
    writer: _Writer, name: str, archive: Archive, stem: str, report: PredictReport
) -> ImageRecord:
    """Segment an image of an archive."""
    record = archive.find(name)
    target = report.folder / stem
    report.written.append(writer.write(archive, record.index, None, name, target))
    return record


def _make_folder(folder: Path) -> None:
    """Make the output folder; UserError if it is not a folder or not writable."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; name a folder with --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({error.strerror}); choose another --out") from None


@dataclass(frozen=True)
class _Writer:
    """Segments images and writes their pictures."""

    predictor: ImagePredictor
    confidence: bool
    finished: Finished | None
    """Pictures of an earlier call; None where files with other content must not be overwritten."""

    def write(
        self, archive: Archive, index: int, bar: int | None, source: str, target: Path
    ) -> PredictedImage:
        """One image; ``bar`` is the index of the rows cropped from it."""
        record, classes = archive.records[index], self.predictor.classes
        pixels = f"{archive.rows[index].pixel_checksum} {record.low} {record.high} {bar is not None}"
        key = f"{target} {self.confidence} {source} {pixels}"
        if self.finished is not None and (before := self.finished.find(key)):
            return replace(PredictedImage(**before), um_per_pixel=record.um_per_pixel)
        sure = np.empty((record.height, record.width), np.uint8) if self.confidence else None
        labels = self.predictor.archive_image(archive, index, confidence=sure)
        colours = archive_overlay(archive, index, labels, classes)
        mean = float(sure.mean()) / 255 if sure is not None else None
        cropped = 0
        if bar is not None:
            cut = archive.records[bar]
            cropped = cut.height
            unknown = np.full((cropped, cut.width), IGNORE_INDEX, np.uint8)
            colours = np.concatenate([colours, archive_overlay(archive, bar, unknown, classes)])
            labels = np.concatenate([labels, unknown])
            sure = np.concatenate([sure, np.zeros_like(unknown)]) if sure is not None else None
        pictures = {".png": labels, ".overlay.png": colours}
        if sure is not None:
            pictures[".confidence.png"] = sure
        contents = {
            target.with_name(f"{target.name}{ending}"): png_bytes(pixels)
            for ending, pixels in pictures.items()
        }
        for path, data in contents.items():
            if self.finished is not None or not path.exists():
                continue
            if not (path.is_file() and path.read_bytes() == data):
                raise UserError(f"{path} exists with other content; name another folder with --out")
        for path, data in contents.items():
            write_bytes(path, data)
        labels_path, overlay_path, confidence_path = (*map(str, contents), "")[:3]
        image = PredictedImage(
            source, labels_path, overlay_path, cropped, record.um_per_pixel, confidence_path, mean
        )
        if self.finished is not None:
            self.finished.add(key, asdict(image), list(contents))
        return image


def _model_file(run: Path) -> Path:
    """The network or the classifier of a run."""
    return run / (MODEL_FILE if (run / MODEL_FILE).exists() else CLASSIFIER_FILE)


def _stems_of_ids(names: Sequence[str], archive: Archive) -> dict[str, str]:
    """Output stem of each image id; of one that is not found, which is an error later, any."""
    ids = {}
    for name in names:
        try:
            ids[name] = archive.find(name).id
        except UserError:
            ids[name] = name
    stems = picture_names(ids.values())
    return {name: stems[image_id] for name, image_id in ids.items()}


def _stems(names: Sequence[str]) -> dict[str, str]:
    """Output stem of each file: the stem of its name, or the whole path if several files have the same stem."""
    count = Counter(Path(name).stem for name in names)
    wanted = {name: Path(name).stem if count[Path(name).stem] == 1 else name.lstrip("/") for name in names}
    stems = picture_names(wanted.values())
    return {name: stems[stem] for name, stem in wanted.items()}
