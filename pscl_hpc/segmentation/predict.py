"""Predictions for image files, or images of an archive: class-index PNGs and colour overlays.

Files go through a throw-away archive, so they are decoded, scaled and read in windows as the images are that the run
learnt from, whatever their size and bit depth: with the options of ``archive build`` that the run recorded, or those
given (see ``packing``). Rows that are cut from the bottom edge are in the pictures, without a class.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pscl_hpc.archive import IGNORE_INDEX, Archive, ImageRecord
from pscl_hpc.archive.ingest.errors import Unreadable
from pscl_hpc.archive.options import AUTO_CROP, IngestOptions, options_to_tree
from pscl_hpc.archive.single_file import temporary_archive
from pscl_hpc.errors import UserError
from pscl_hpc.progress import Progress
from pscl_hpc.segmentation.evaluate import PREDICTIONS, open_run
from pscl_hpc.segmentation.inference import Predictor
from pscl_hpc.segmentation.packing import Packing, choose_packing, packed_unlike
from pscl_hpc.segmentation.pictures import archive_overlay, picture_name, png_bytes, write_file

FILES = "files"
"""Folder in ``predictions`` for images that were named one by one."""


@dataclass(frozen=True)
class PredictedImage:
    """The pictures of one image, or of one page of a file."""

    source: str
    labels: str
    """Class-index PNG."""
    overlay: str
    """Micrograph with the classes in colour."""
    cropped: int = 0
    """Rows at the bottom edge that were left out: class 255, and as they are in the overlay."""


@dataclass
class PredictReport:
    """What was done."""

    folder: Path
    written: list[PredictedImage] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Image and reason."""
    options: IngestOptions | None = None
    """How the files were packed; None for images of an archive."""
    notices: list[str] = field(default_factory=list)
    """What the user should know."""

    @property
    def bars(self) -> list[tuple[str, int]]:
        """Where an information bar was found, and its rows."""
        automatic = self.options is not None and self.options.crop_bottom == AUTO_CROP
        return [(image.source, image.cropped) for image in self.written if automatic and image.cropped]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "folder": str(self.folder),
            "written": [asdict(image) for image in self.written],
            "skipped": [{"source": source, "reason": reason} for source, reason in self.skipped],
            "options": options_to_tree(self.options) if self.options is not None else None,
            "notices": self.notices,
        }


class _Occupied(Exception):
    """A file with other content is in the way."""


def predict(
    run: str | Path,
    images: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    archive: str | Path | None = None,
    percentiles: tuple[float, float] | None = None,
    luma: bool | None = None,
    crop_bottom: int | None = None,
    tta: bool = False,
    adapt: float = 0.0,
    progress: bool = False,
) -> PredictReport:
    """Segment images with a fine-tuned run.

    An image that cannot be read, or whose pictures would overwrite a file with other content, is skipped and named;
    the others are done.

    Args:
        run: A finished fine-tuning run.
        images: Image files, or ids when ``archive`` is given.
        out: Folder for the pictures; ``RUN/predictions/files`` when None.
        archive: Take the images from this archive.
        percentiles: As ``archive build --percentiles``, for files; None as the run's annotated images were packed.
        luma: As ``archive build --colour luma`` (or ``keep``), likewise.
        crop_bottom: As ``archive build --crop-bottom``, likewise; ``AUTO_CROP`` is ``auto``.
        tta: Test-time augmentation, see :class:`Predictor`.
        adapt: Share of each image's own statistics in batch normalisation, 0 to 1, see :mod:`adaptation`.
        progress: Show a progress bar when the output is a terminal.

    Raises:
        UserError: no finished fine-tuning run, ``out`` cannot be written to, the run's images were packed in several
            ways and it is not given which to take, or not one image could be segmented.
    """
    if not images:
        raise UserError("predict: no image is named; give at least one file")
    values = {"percentiles": percentiles, "luma": luma, "crop_bottom": crop_bottom}
    given = {name: value for name, value in values.items() if value is not None}
    if archive is not None and given:
        raise UserError(
            "predict: images of an archive are taken as they are in it; leave out --percentiles, --colour and "
            "--crop-bottom, or name files"
        )
    folder, _, predictor = open_run(run, tta=tta, adapt=adapt)
    packing = None if archive is not None else choose_packing(folder, given)
    report = PredictReport(Path(out) if out is not None else folder.path / PREDICTIONS / FILES)
    _make_folder(report.folder)
    named = list(dict.fromkeys(str(image) for image in images))
    source = Archive(archive) if archive is not None else None
    stems = {name: picture_name(name) for name in named} if source else _stems(named)
    taken: list[ImageRecord] = []
    with Progress("predict", len(named), unit="image", show=progress) as bar:
        for name in named:
            try:
                if source is not None:
                    record = source.find(name)
                    report.written.append(
                        _write(predictor, source, record.index, None, name, report.folder / stems[name])
                    )
                    taken.append(record)
                elif packing is not None:
                    _segment_file(predictor, name, packing, report, stems[name])
            except (Unreadable, UserError, _Occupied) as error:
                report.skipped.append((name, str(error)))
            bar.advance(name)
    if packing is not None:
        report.options, report.notices = packing.options, packing.all_notices()
    elif source is not None:
        report.notices = packed_unlike(folder, taken)
    if not report.written:
        name, reason = report.skipped[0]
        others = f" (and {len(report.skipped) - 1} others)" if len(report.skipped) > 1 else ""
        raise UserError(f"no image could be segmented: {name}{others}: {reason}")
    return report


def _make_folder(folder: Path) -> None:
    """Make the folder of the pictures; UserError where none can be, or nothing can be written into it."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; name a folder with --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({error.strerror}); choose another --out") from None


def _segment_file(
    predictor: Predictor, name: str, packing: Packing, report: PredictReport, stem: str
) -> None:
    """Write the pictures of each page of a file."""
    with temporary_archive(Path(name), report.folder, packing.options, unsure=packing.unsure) as (
        archive,
        pages,
    ):
        for number, page in enumerate(pages):
            target = report.folder / (f"{stem}#{number}" if len(pages) > 1 else stem)
            report.written.append(_write(predictor, archive, page.index, page.bar, name, target))
            packing.doubt(name, page.sensitive)


def _write(
    predictor: Predictor, archive: Archive, index: int, bar: int | None, source: str, target: Path
) -> PredictedImage:
    """Segment an image and write its pictures, with its ``bar`` (an image, too) below it."""
    labels = predictor.archive_image(archive, index)
    colours = archive_overlay(archive, index, labels, predictor.classes)
    cropped = 0
    if bar is not None:
        record = archive.records[bar]
        cropped = record.height
        unknown = np.full((cropped, record.width), IGNORE_INDEX, np.uint8)
        colours = np.concatenate([colours, archive_overlay(archive, bar, unknown, predictor.classes)])
        labels = np.concatenate([labels, unknown])
    contents = {
        target.with_name(f"{target.name}.png"): png_bytes(labels),
        target.with_name(f"{target.name}.overlay.png"): png_bytes(colours),
    }
    for path, data in contents.items():
        if path.exists() and not (path.is_file() and path.read_bytes() == data):
            raise _Occupied(f"{path} exists with other content; name another folder with --out")
    for path, data in contents.items():
        write_file(path, data)
    first, second = contents
    return PredictedImage(source, str(first), str(second), cropped)


def _stems(names: Sequence[str]) -> dict[str, str]:
    """Output stems of files: their own, with folder and extension where several files share one."""
    count = Counter(Path(name).stem for name in names)
    return {
        name: picture_name(Path(name).stem if count[Path(name).stem] == 1 else name.lstrip("/"))
        for name in names
    }
