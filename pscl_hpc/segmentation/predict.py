"""Predictions for image files, or images of an archive: class-index PNGs and colour overlays.

Files go through a throw-away archive, so they are decoded, scaled and read in windows as images of an archive are that
was built with the default options, whatever their size and bit depth. An archive does not keep its own options: for one
built with others (``--percentiles``, ``--colour``, ``--crop-bottom``), build an archive of the new images with the same
and predict by id.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pscl_hpc.archive import Archive, Collection, ShardWriter
from pscl_hpc.archive.ingest.errors import Unreadable
from pscl_hpc.archive.ingest.images import open_pages
from pscl_hpc.archive.ingest.page import single_channel
from pscl_hpc.errors import UserError
from pscl_hpc.progress import Progress
from pscl_hpc.segmentation.evaluate import PREDICTIONS, open_run
from pscl_hpc.segmentation.inference import Predictor
from pscl_hpc.segmentation.pictures import archive_overlay, picture_name, png_bytes, write_file

FILES = "files"
"""Folder in ``predictions`` for images that were named one by one."""
_COLLECTION = "files"


@dataclass(frozen=True)
class PredictedImage:
    """The pictures of one image, or of one page of a file."""

    source: str
    labels: str
    """Class-index PNG."""
    overlay: str
    """Micrograph with the classes in colour."""


@dataclass
class PredictReport:
    """What was done."""

    folder: Path
    written: list[PredictedImage] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Image and reason."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "folder": str(self.folder),
            "written": [asdict(image) for image in self.written],
            "skipped": [{"source": source, "reason": reason} for source, reason in self.skipped],
        }


class _Occupied(Exception):
    """A file with other content is in the way."""


def predict(
    run: str | Path,
    images: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    archive: str | Path | None = None,
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
        progress: Show a progress bar when the output is a terminal.

    Raises:
        UserError: no finished fine-tuning run, ``out`` cannot be written to, or not one image could be segmented.
    """
    if not images:
        raise UserError("predict: no image is named; give at least one file")
    folder, _, predictor = open_run(run)
    report = PredictReport(Path(out) if out is not None else folder.path / PREDICTIONS / FILES)
    _make_folder(report.folder)
    named = list(dict.fromkeys(str(image) for image in images))
    source = Archive(archive) if archive is not None else None
    stems = {name: picture_name(name) for name in named} if source else _stems(named)
    with Progress("predict", len(named), unit="image", show=progress) as bar:
        for name in named:
            try:
                if source is not None:
                    index = source.find(name).index
                    report.written.append(_write(predictor, source, index, name, report.folder, stems[name]))
                else:
                    with _packed(Path(name), report.folder) as pages:
                        for page in pages.records:
                            stem = stems[name] + (f"#{page.index}" if len(pages) > 1 else "")
                            report.written.append(
                                _write(predictor, pages, page.index, name, report.folder, stem)
                            )
            except (Unreadable, UserError, _Occupied) as error:
                report.skipped.append((name, str(error)))
            bar.advance(name)
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


@contextmanager
def _packed(path: Path, folder: Path) -> Iterator[Archive]:
    """An archive of the pages of one file, gone after the block; Unreadable when there is no image in it."""
    with tempfile.TemporaryDirectory(prefix=".predict-", dir=folder) as scratch:
        shard = Path(scratch) / "image.h5"
        with open_pages(path) as pages, ShardWriter(shard, [Collection(_COLLECTION)]) as writer:
            for number, page in enumerate(pages):
                page = single_channel(page, luma=False)
                shape = (page.height, page.width, page.channels)
                writer.add_strips(
                    page.strips(),
                    shape=shape,
                    dtype=page.dtype,
                    id=f"{_COLLECTION}/{number:06d}",
                    dataset=_COLLECTION,
                    intensity=page.intensity,
                )
        with Archive(shard) as archive:
            yield archive


def _write(
    predictor: Predictor, archive: Archive, index: int, source: str, folder: Path, stem: str
) -> PredictedImage:
    labels = predictor.archive_image(archive, index)
    colours = archive_overlay(archive, index, labels, predictor.classes)
    contents = {folder / f"{stem}.png": png_bytes(labels), folder / f"{stem}.overlay.png": png_bytes(colours)}
    for path, data in contents.items():
        if path.exists() and not (path.is_file() and path.read_bytes() == data):
            raise _Occupied(f"{path} exists with other content; name another folder with --out")
    for path, data in contents.items():
        write_file(path, data)
    first, second = contents
    return PredictedImage(source, str(first), str(second))


def _stems(names: Sequence[str]) -> dict[str, str]:
    """Output stems of files: their own, with folder and extension where several files share one."""
    count = Counter(Path(name).stem for name in names)
    return {
        name: picture_name(Path(name).stem if count[Path(name).stem] == 1 else name.lstrip("/"))
        for name in names
    }
