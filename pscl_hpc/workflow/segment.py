"""From a folder and a mask, or a few, to numbers: pack, train, predict, measure, page.

Each step is what a single command does, and finds what an earlier call has finished: the archive is only extended, the
run resumes from its checkpoint, images that are segmented are kept. So the same call resumes after an interruption.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from pscl_hpc.archive import Archive
from pscl_hpc.archive.build import build
from pscl_hpc.archive.ingest.sources import plan
from pscl_hpc.config import load_config
from pscl_hpc.errors import UserError
from pscl_hpc.metallography.image import SMALLEST
from pscl_hpc.metallography.measure import measure
from pscl_hpc.metallography.record import MEASUREMENTS
from pscl_hpc.metallography.result import Measured
from pscl_hpc.report import write_report
from pscl_hpc.runs import RunFolder
from pscl_hpc.segmentation import finetune
from pscl_hpc.segmentation.annotations import class_list
from pscl_hpc.segmentation.config import FinetuneConfig
from pscl_hpc.training import read_place
from pscl_hpc.workflow.inputs import (
    ARCHIVE_FILE,
    Inputs,
    check_files,
    pack,
)
from pscl_hpc.workflow.request import PAGE, RUN, Request, keep_request, read_request
from pscl_hpc.workflow.suggestion import Annotation, prepare_annotation

JOB_ENTRY = "pscl_hpc.workflow.segment:finish_job"
"""What a job runs."""
Say = Callable[[str], None]
Training = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Segmented:
    """The result."""

    folder: Path
    page: Path
    measured: Measured


@dataclass(frozen=True)
class Prepared:
    """The archive and the configuration of the training."""

    inputs: Inputs
    config: FinetuneConfig


def segment(
    request: Request,
    out: Path,
    *,
    say: Say = lambda text: None,
    progress: bool = False,
    training: Training = nullcontext,
) -> Segmented:
    """Do everything, or what an earlier call has left to do.

    Args:
        request: What is asked for.
        out: The folder of the results.
        say: Called with sentences on what was found.
        progress: Show progress bars if the output is a terminal.
        training: A block around the training, such as one that handles signals.

    Raises:
        UserError: an input is wrong, or ``out`` has the results of another request or files of another origin.
        StopRequested: as :func:`~pscl_hpc.segmentation.finetune`.
    """
    prepared = prepare(request, out, say=say, progress=progress)
    return finish(request, out, prepared, say=say, progress=progress, training=training)


def suggest_annotation(request: Request, out: Path, *, progress: bool = False) -> Annotation:
    """Pack the images, choose the one to annotate, and write a template to paint on; errors as of :func:`segment`."""
    images = plan([Path(request.folder)])
    keep_request(request, out)
    packed = build(images, out / ARCHIVE_FILE, request.options, progress=progress)
    found = prepare_annotation(out / ARCHIVE_FILE, out, progress=progress)
    skipped = tuple((one.path, one.reason) for one in packed.skipped)
    return replace(found, warnings=packed.warnings + found.warnings, skipped=skipped)


def prepare(request: Request, out: Path, *, say: Say = lambda text: None, progress: bool = False) -> Prepared:
    """Pack the archive and check the configuration; the arguments and errors are those of :func:`segment`."""
    if not request.masks:
        raise UserError(f"{request.folder}: a mask of one image is needed; give it with --mask")
    folder, masks = Path(request.folder), [Path(mask) for mask in request.masks]
    check_files(folder, masks)
    keep_request(request, out)
    inputs = pack(
        folder,
        masks,
        out,
        images=request.images,
        classes=request.classes,
        mask_values=request.mask_values,
        scribbles=request.scribbles,
        options=request.options,
        extend=not (out / RUN).is_dir() or _is_done(out / RUN),
        again=not (out / RUN).exists(),
        progress=progress,
    )
    for note in inputs.notes:
        say(note)
    say(_found(inputs, request.um_per_pixel))
    for warning in inputs.warnings:
        say(f"warning: {warning}")
    for source, reason in inputs.skipped:
        say(f"skipped {source}: {reason}")
    if inputs.waiting:
        more = "1 more image is" if len(inputs.waiting) == 1 else f"{len(inputs.waiting)} more images are"
        say(f"{more} added after the training, which goes on with the images that it began with")
    config = load_config(request.recipe, _overrides(request, out, inputs), kind="finetune")
    assert isinstance(config, FinetuneConfig)
    archive = Archive(inputs.archive)
    # A wrong name is an error now, not after the training.
    request.wanted.rules(class_list(archive.collections[inputs.home], archive))
    return Prepared(inputs, config)


def finish(
    request: Request,
    out: Path,
    prepared: Prepared,
    *,
    say: Say = lambda text: None,
    progress: bool = False,
    training: Training = nullcontext,
) -> Segmented:
    """Train, predict, measure and write the page; the arguments and errors are those of :func:`segment`."""
    inputs, config = prepared.inputs, prepared.config
    if not (out / RUN).is_dir() or not _is_done(out / RUN):
        masks = "masks" if len(inputs.references) > 1 else "mask"
        say(f"training on the {masks} of {', '.join(inputs.references)} ({_length(config)}), in {out / RUN}")
    with training():
        finetune(config, progress=progress)
    if inputs.waiting:
        # The run is done now, so the archive may change.
        inputs = prepare(request, out, progress=progress).inputs
    ids = [record.id for record in Archive(inputs.archive).select(datasets=[inputs.home])]
    say(f"segmenting and measuring {_images(len(ids))}")
    measured = measure(
        out / RUN,
        ids,
        archive=inputs.archive,
        out=out / MEASUREMENTS,
        wanted=request.wanted,
        commands=_commands(request, out, inputs),
        notes=inputs.warnings,
        skipped=inputs.skipped,
        progress=progress,
    )
    page = write_report([measured.folder], out / PAGE)
    return Segmented(out, page.path, measured)


def finish_job(config: FinetuneConfig) -> None:
    """The part of :func:`segment` after packing, as a job: its run folder tells the rest."""
    out = Path(config.run).parent
    request = read_request(out)
    if not read_place().first:
        finetune(config)
        return
    prepared = prepare(request, out, say=print)
    finish(request, out, Prepared(prepared.inputs, config), say=print)


def _length(config: FinetuneConfig) -> str:
    schedule = config.schedule
    if not schedule.minutes:
        return f"{schedule.steps} steps"
    return f"about {schedule.minutes:g} minute{'s' if schedule.minutes != 1 else ''}"


def _is_done(run: Path) -> bool:
    try:
        return RunFolder.load(run).done
    except UserError:
        return False


def _found(inputs: Inputs, um_per_pixel: float | None) -> str:
    archive = Archive(inputs.archive)
    records = archive.select(datasets=[inputs.home])
    scales = sum(record.um_per_pixel is not None for record in records)
    annotated = sum(record.has_mask for record in records)
    scale = f"known of {scales}" if scales < len(records) else "known of all"
    if um_per_pixel is not None:
        scale = f"{um_per_pixel:g} um per pixel as given"
    elif not scales:
        scale = "not known, so lengths are in pixels (--um-per-pixel gives it)"
    return (
        f"{inputs.home}: {_images(len(records))}, {annotated} with a mask; classes: {', '.join(inputs.classes)}; "
        f"annotated image{'s' if len(inputs.references) > 1 else ''}: {', '.join(inputs.references)}; scale {scale}"
    )


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"


def _commands(request: Request, out: Path, inputs: Inputs) -> list[str]:
    """The single commands that do the same."""
    words = ["pscl-hpc", "measure", str(out / RUN)]
    for name in request.phases:
        words += ["--phase", name]
    if request.boundary:
        words += ["--boundary", request.boundary]
    if request.smallest != SMALLEST:
        words += ["--smallest", str(request.smallest)]
    if request.um_per_pixel is not None:
        words += ["--um-per-pixel", f"{request.um_per_pixel:g}"]
    train = [
        "pscl-hpc",
        "finetune",
        "--config",
        str(request.recipe),
        *_overrides(request, out, inputs),
    ]
    measure_all = [*words, "--out", str(out / MEASUREMENTS)]
    page = ["pscl-hpc", "report", str(out / MEASUREMENTS), "--out", str(out / PAGE)]
    return [inputs.command, *map(shlex.join, (train, measure_all, page))]


def _overrides(request: Request, out: Path, inputs: Inputs) -> list[str]:
    """The changes of the recipe; quoted as JSON, because values are read as YAML."""
    time = (f"schedule.minutes={request.minutes:g}",) if request.minutes else ()
    return [
        f"run={json.dumps(str(out / RUN))}",
        f"data.archive={json.dumps(str(inputs.archive))}",
        f"references={json.dumps(list(inputs.references))}",
        *time,
        *request.overrides,
    ]
