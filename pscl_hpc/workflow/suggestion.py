"""What to annotate when no mask is given: a suggestion, why, and a template to paint on."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pscl_hpc.archive import IGNORE_INDEX, Archive
from pscl_hpc.files import write_bytes
from pscl_hpc.segmentation.palette import class_colours
from pscl_hpc.segmentation.pictures import picture_name, png_bytes
from pscl_hpc.suggestion import dense_features, draw, suggest
from pscl_hpc.workflow.masks import TEMPLATE_EMPTY

_REASON = "suggestion.png"
_FOLDER = "annotate"


@dataclass(frozen=True)
class Annotation:
    """The image to annotate."""

    id: str
    """Its id in the archive."""
    image: Path
    """A copy of it, as networks see it: 8-bit grey or colour."""
    template: Path
    """A palette PNG of its size, filled with 255, not annotated; paint it with the indices of the classes."""
    reason: Path
    """A picture that shows why this image was chosen."""
    lines: tuple[str, ...]
    """The suggestion in words."""
    warnings: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    """Files that were not packed, and why."""


def prepare_annotation(archive_path: Path, out: Path, *, progress: bool = False) -> Annotation:
    """Choose the image to annotate, and write what is needed for it; an existing template is kept.

    Args:
        archive_path: The images.
        out: Folder of the pictures.
        progress: Show a progress bar if the output is a terminal.
    """
    archive = Archive(archive_path)
    found = suggest(archive, dense_features(), progress=progress)
    draw(archive, found, out / _REASON)
    record = found.images[found.chosen[0]].record
    folder = out / _FOLDER
    folder.mkdir(exist_ok=True)
    stem = picture_name(record.id.partition("/")[2] or record.id)
    image, template = folder / f"{stem}.png", folder / f"{stem}_mask.png"
    unit = archive.read_unit(record.index, (0, 0, record.height, record.width))
    pixels = (unit * 255).round().astype(np.uint8)
    write_bytes(image, png_bytes(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0).copy()))
    if not template.exists():
        write_bytes(template, _empty_mask(record.height, record.width))
    warnings = []
    if different := found.looks_different():
        warnings.append(
            f"{different}; a model from one mask may be wrong there: check these images in the result, or annotate one of "
            "them, too, and give a --mask for each"
        )
    return Annotation(record.id, image, template, out / _REASON, tuple(found.lines()), tuple(warnings))


def _empty_mask(height: int, width: int) -> bytes:
    colours = np.full((256, 3), TEMPLATE_EMPTY, np.uint8)
    colours[:IGNORE_INDEX] = class_colours(IGNORE_INDEX)
    mask = Image.fromarray(np.full((height, width), IGNORE_INDEX, np.uint8), "L")
    mask.putpalette(colours.tobytes())
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    return buffer.getvalue()
