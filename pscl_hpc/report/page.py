"""The report: one self-contained HTML file from run folders in any state."""

from __future__ import annotations

import datetime
import importlib.resources
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pscl_hpc import __version__
from pscl_hpc.errors import UserError
from pscl_hpc.files import write_text
from pscl_hpc.metallography.record import MEASUREMENTS, MEASUREMENTS_FILE, Measurements, read_measurements
from pscl_hpc.report.charts import DotRow, dots, slopes
from pscl_hpc.report.curves import Chart, comparison, run_charts
from pscl_hpc.report.inspection import class_styles, explanation, image_figures
from pscl_hpc.report.measure_page import measure_context
from pscl_hpc.report.pictures import CONFUSED, ERROR_COLOURS, EXTRA, MISSED
from pscl_hpc.report.predictions import prediction_panels
from pscl_hpc.report.story import headline
from pscl_hpc.report.study_page import study_context
from pscl_hpc.results.evaluation import number
from pscl_hpc.results.runs import RunData, collect
from pscl_hpc.results.scores import CollectionScores, Comparison, score_tables
from pscl_hpc.results.study import RESULTS_FILE, StudyResults, read_results
from pscl_hpc.segmentation.palette import hex_colour

REPORT_FILE = "report.html"
SEGMENT_FILE = "segment.json"
"""What ``segment`` was asked for, in its folder."""
MOST_OPEN = 8
"""Runs of a group that are listed; more are folded away."""
MOST_CURVES = 12
"""Fine-tuning runs whose curves are shown."""
ERRORS = (
    ("missed: annotated as a class, predicted as background", hex_colour(ERROR_COLOURS[MISSED])),
    ("extra: background predicted as a class", hex_colour(ERROR_COLOURS[EXTRA])),
    ("wrong class", hex_colour(ERROR_COLOURS[CONFUSED])),
)
"""The colours of error maps."""


@dataclass(frozen=True)
class Report:
    """The result of :func:`write_report`."""

    path: Path
    runs: int
    damage: tuple[str, ...]
    """Files that could not be read, each with the reason; the page names them too."""


def write_report(paths: Sequence[Path], out: Path | None = None) -> Report:
    """Write the page of all runs in and below ``paths``, or that of a study, of measurements or of ``segment``.

    Args:
        paths: Folders; for a study, measurements or ``segment`` their folder alone.
        out: The file to write; by default ``report.html`` in the first path.

    Raises:
        UserError: a path contains no run, or the file cannot be written, or is by default the page of ``segment``.
    """
    if not paths:
        raise UserError("no run folder given; name at least one, for example runs/demo")
    alone = paths[0] if len(paths) == 1 else None
    study = read_results(alone) if alone and (alone / RESULTS_FILE).is_file() else None
    place = _measured_in(alone) if alone else None
    measured = read_measurements(place) if place else None
    runs = [] if study or measured else collect(paths)
    target = out if out is not None else paths[0] / REPORT_FILE
    if out is None and not alone and (paths[0] / SEGMENT_FILE).is_file() and _measured_in(paths[0]):
        raise UserError(f"{target}: is the page of 'pscl-hpc segment'; name another file with --out")
    if target.is_dir():
        raise UserError(f"{target}: is a folder; name a file after --out, for example {target / REPORT_FILE}")
    if not target.parent.is_dir():
        raise UserError(f"{target.parent}: folder not found; create it or choose another --out")
    if measured and place:
        text = render_measurements(measured, place)
    else:
        text = render_study(study, paths[0]) if study else render(runs)
    try:
        write_text(target, text)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}); choose another --out") from None
    return Report(
        target, study.scored if study else len(runs), tuple(damage for run in runs for damage in run.damage)
    )


def _measured_in(folder: Path) -> Path | None:
    """The folder with the measurements, if this is one or that of ``segment``."""
    places = [folder, folder / MEASUREMENTS] if (folder / SEGMENT_FILE).is_file() else [folder]
    return next((place for place in places if (place / MEASUREMENTS_FILE).is_file()), None)


def render(runs: Sequence[RunData]) -> str:
    """The page as HTML. The same runs give the same text."""
    tables = score_tables(runs)
    pretraining = [run for run in runs if run.kind == "pretrain"]
    finetuning = [run for run in runs if run.kind != "pretrain"]
    return _fill(
        "report.html.j2",
        head=headline(runs, tables),
        runs=runs,
        tables=tables,
        panels=prediction_panels(tables),
        dots=_dots,
        slopes=_slopes,
        inspections=[
            {
                "run": run,
                "samples": any(len(scale.classes) for scale in run.inspection.scales),
                "explanation": explanation(run.inspection),
                "classes": class_styles(run.inspection.classes),
                "images": image_figures(run.inspection),
            }
            for run in pretraining
            if run.inspection is not None
        ],
        pretraining_charts=_charts(pretraining, "p"),
        finetuning_charts=_charts(finetuning[:MOST_CURVES], "f"),
        unshown_curves=max(0, len(finetuning) - MOST_CURVES),
        validation=_validation(finetuning),
        most_open=MOST_OPEN,
    )


def render_study(results: StudyResults, folder: Path) -> str:
    """The page of a study as HTML. The same results and run folders give the same text."""
    return _fill("study.html.j2", **study_context(results, folder))


def render_measurements(record: Measurements, folder: Path) -> str:
    """The page of measurements as HTML. The same files give the same text."""
    return _fill("measure.html.j2", **measure_context(record, folder))


def _fill(template: str, **values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pscl_hpc.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(score=_score, percent=_percent, duration=_duration, pretty=_pretty)
    style = importlib.resources.files("pscl_hpc.report").joinpath("templates/style.css").read_text("utf-8")
    # Besides our own charts, the style sheet of this package is the only text that is not escaped.
    return environment.get_template(template).render(
        version=__version__, style=Markup(style), safe=Markup, errors=ERRORS, **values
    )


def _dots(table: CollectionScores, name: str) -> str:
    """Dice of each class, and their mean, for all groups of a table."""
    labels = [*table.classes, "mean"] if len(table.classes) > 1 else list(table.classes)
    rows = [
        DotRow(
            label,
            tuple(
                tuple(v for row in group.rows if (v := row.values(table.classes)[column]) is not None)
                for group in table.groups
            ),
        )
        for column, label in enumerate(labels)
    ]
    return dots(name, rows, title=f"Dice of each class on {table.name}")


def _slopes(comparison: Comparison, name: str) -> str:
    """Mean Dice of each annotated image from scratch and pretrained."""
    pairs = [(scratch, pretrained) for pretrained, scratch in comparison.pairs]
    ends = (comparison.scratch.began, comparison.pretrained.start)
    return slopes(name, pairs, ends, title="Mean Dice of each annotated image, from scratch and pretrained")


def _charts(runs: Sequence[RunData], prefix: str) -> list[tuple[RunData, list[Chart]]]:
    found = [(run, run_charts(run, f"{prefix}{index}")) for index, run in enumerate(runs)]
    return [item for item in found if item[1]]


def _validation(runs: Sequence[RunData]) -> Chart | None:
    """Mean Dice on the validation images of all fine-tuning runs."""
    if len(runs) < 2:
        return None
    coloured = [(run, 1 if run.setting("pretrained") else 0) for run in runs]
    return comparison("validation", coloured, "val/mean_dice", ("from scratch", "pretrained"))


def _score(value: float | None) -> str:
    return "\N{EN DASH}" if value is None else f"{value:.3f}"


def _percent(value: float) -> str:
    # 99.97 % must not be rounded to 100 %, which would mean that no pixel is wrong.
    return "100 %" if value == 1 else f"{min(100 * value, 99.9):.1f} %"


def _duration(run: RunData) -> str:
    times = [time for line in run.metrics if (time := number(line.get("time"))) is not None]
    try:
        start, end = (
            datetime.datetime.fromisoformat(str(run.record[key])) for key in ("created", "finished")
        )
        seconds = round((end - start).total_seconds())
    except (KeyError, TypeError, ValueError):
        if len(times) < 2:
            return "unknown"
        seconds = round(max(times) - min(times))
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _pretty(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
