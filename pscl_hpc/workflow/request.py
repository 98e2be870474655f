"""What a call of ``segment`` asks for, and the folder that keeps it and its results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pscl_hpc.archive.build import BuildOptions
from pscl_hpc.archive.options import ALL_PAGES
from pscl_hpc.config.packaged import packaged_config
from pscl_hpc.errors import UserError
from pscl_hpc.files import create_text, write_text
from pscl_hpc.metallography.image import SMALLEST
from pscl_hpc.metallography.measure import Wanted
from pscl_hpc.metallography.record import MEASUREMENTS
from pscl_hpc.report import REPORT_FILE, SEGMENT_FILE
from pscl_hpc.workflow.inputs import ANNOTATION, ANNOTATION_FILE, ARCHIVE_FILE

RECIPE = "finetune/default.yaml"
REQUEST_FILE = SEGMENT_FILE
RUN, PAGE = "model", REPORT_FILE
_WRITTEN = (ARCHIVE_FILE, ANNOTATION_FILE, ANNOTATION, RUN, MEASUREMENTS, PAGE)
"""What a call writes besides the request."""
_MEASURING = ("phases", "boundary", "smallest", "um_per_pixel")
"""Fields of :class:`Request` that do not concern the training: a later call may change them."""


class Request(BaseModel):
    """What a call asks for; kept in ``segment.json``, so that an interrupted call is resumed by the same one only. What is
    measured may change."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: str
    masks: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    """Image of each mask, where the names do not tell."""
    classes: tuple[str, ...] = ()
    mask_values: dict[int | str, str] = {}
    scribbles: bool = False
    percentiles: tuple[float, float] = (0.5, 99.5)
    luma: bool = False
    crop_bottom: int = 0
    page: int = ALL_PAGES
    common_range: bool = False
    config: str = ""
    """Configuration file of the training; empty: the default recipe."""
    minutes: float | None = None
    """Time for training; None: the steps of the recipe."""
    overrides: tuple[str, ...] = ()
    """Overrides of the recipe."""
    phases: tuple[str, ...] = ()
    boundary: str = ""
    smallest: int = SMALLEST
    um_per_pixel: float | None = None

    @property
    def options(self) -> BuildOptions:
        """How images are packed."""
        return BuildOptions(self.percentiles, self.luma, self.crop_bottom, self.page, self.common_range)

    @property
    def recipe(self) -> Path:
        """The configuration file of the training."""
        return Path(self.config) if self.config else packaged_config(RECIPE)

    @property
    def wanted(self) -> Wanted:
        """What is measured."""
        return Wanted(self.phases, self.boundary, self.smallest, self.um_per_pixel)


def read_request(out: Path) -> Request:
    """The request of a folder; UserError if it cannot be read."""
    path = out / REQUEST_FILE
    try:
        return Request.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        raise UserError(f"{path}: cannot be read; restore it from a copy, or choose another --out") from None


def keep_request(request: Request, out: Path) -> None:
    """Record a request in its folder, or check that it is the recorded one; a packed archive of another one is removed.

    Raises:
        UserError: the folder has the results of another request, or files of another origin, or cannot be written to.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder with --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        others = [name for name in _WRITTEN if (out / name).exists()]
        if others and not (out / REQUEST_FILE).exists():
            raise UserError(
                f"{out / others[0]}: is not from 'segment', which would replace it; choose another --out"
            )
        if create_text(out / REQUEST_FILE, request.model_dump_json(indent=2) + "\n"):
            return
    except OSError as error:
        raise UserError(f"{out}: cannot be written to ({error.strerror}); choose another --out") from None
    before: dict[str, Any] = read_request(out).model_dump()
    now = request.model_dump()
    changed = [key for key in now if now[key] != before[key] and key not in _MEASURING]
    if changed and "folder" not in changed and not (out / RUN).exists():
        # Nothing was trained yet: a corrected call begins again. The mask that was painted belongs to the same images.
        (out / ARCHIVE_FILE).unlink(missing_ok=True)
    elif changed:
        key = changed[0]
        raise UserError(
            f"{out}: has the results of another call ({key}: {_shown(before[key])} there, {_shown(now[key])} here); choose "
            "another --out"
        )
    if now != before:
        write_text(out / REQUEST_FILE, request.model_dump_json(indent=2) + "\n")


def _shown(value: Any) -> str:
    """A value of a request as it is typed."""
    if isinstance(value, dict):
        value = [f"{key}={name}" for key, name in value.items()]
    text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return "nothing" if value is None or not text else text
