"""ImageJ and Fiji: one ROI (.roi) or the ROI manager's list (.zip) per image. Needs the extra ``imagej``."""

from __future__ import annotations

import io
import re
import zipfile
from typing import Any

from pscl_hpc.archive.ingest.annotations.formats import (
    Drawing,
    Points,
    Shape,
    annotation_format,
    ellipse,
    points,
)
from pscl_hpc.archive.ingest.errors import Unreadable

_MAX_BYTES = 1 << 26
"""Of one ROI in a list."""
_AUTOMATIC = re.compile(r"\d{3,}(-\d{3,}){1,2}(-\d+)?")
"""Names that ImageJ gives: slice, row and column."""


@annotation_format("ImageJ ROI", ".roi", ".zip")
def read_imagej(data: bytes) -> tuple[list[Drawing], list[str]] | None:
    """An ROI is labelled by its name, which may be a class and a number (``carbide-3``), or else by its group."""
    files = _roi_files(data)
    if files is None:
        return None
    try:
        import roifile
    except ImportError:
        raise Unreadable(
            "ROIs of ImageJ need the package roifile; install it with pip install 'pscl-hpc[imagej]', or save "
            "a mask (Edit > Selection > Create Mask)"
        ) from None
    rois = [(name, roifile.ImagejRoi.frombytes(content)) for name, content in files]
    try:
        if any(max(roi.position, roi.z_position, roi.t_position) > 1 for _, roi in rois):
            raise Unreadable(
                "its ROIs are on several slices of a stack; save each slice as a file with its ROIs"
            )
        shapes = tuple(_shape(roi, name) for name, roi in rois)
    except Unreadable as error:
        return [Drawing("", (), None, str(error))], []
    return [Drawing("", shapes, loose=True)], []


def _roi_files(data: bytes) -> list[tuple[str, bytes]] | None:
    """Name and content of each ROI; None if the file has none."""
    if data.startswith(b"Iout"):
        return [("", data)]
    if not data.startswith(b"PK"):
        return None
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [entry for entry in archive.infolist() if entry.filename.lower().endswith(".roi")]
        if not entries:
            return None
        if any(entry.file_size > _MAX_BYTES for entry in entries):
            raise Unreadable(f"an ROI has more than {_MAX_BYTES} bytes")
        return [(entry.filename[:-4], archive.read(entry)) for entry in entries]


def _shape(roi: Any, file_name: str) -> Shape:
    import roifile

    kinds = roifile.ROI_TYPE
    name = str(roi.name or file_name)
    if roi.composite:
        outlines = tuple(points(outline) for outline in roi.coordinates(multi=True) if len(outline) > 2)
    elif roi.roitype == kinds.OVAL:
        outlines = (_oval(roi),)
    elif roi.roitype in (kinds.POLYGON, kinds.FREEHAND, kinds.TRACED, kinds.RECT):
        outlines = (points(roi.coordinates()),)
    else:
        raise Unreadable(f"its ROI {name!r} is a {roi.roitype.name.lower()}, which has no area; draw areas")
    return Shape(_label(name, int(roi.group)), outlines)


def _oval(roi: Any) -> Points:
    across, down = (roi.right - roi.left) / 2, (roi.bottom - roi.top) / 2
    return ellipse(roi.left + across, roi.top + down, across, down)


def _label(name: str, group: int) -> str:
    if group and (not name or _AUTOMATIC.fullmatch(name)):
        return f"group {group}"
    return "" if _AUTOMATIC.fullmatch(name) else name
