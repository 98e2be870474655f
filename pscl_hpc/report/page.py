"""The report: one HTML file that needs nothing else, from run folders in any state."""

from __future__ import annotations

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
from pscl_hpc.report.collect import RunData, collect, parse_time
from pscl_hpc.report.curves import Chart, comparison, run_charts
from pscl_hpc.report.inspection import ClassStyle, ImageFigure, class_styles, explanation, image_figures
from pscl_hpc.report.pictures import CONFUSED, ERROR_COLOURS, EXTRA, MISSED
from pscl_hpc.report.predictions import prediction_panels
from pscl_hpc.report.scores import score_tables
from pscl_hpc.report.story import headline
from pscl_hpc.report.study_page import study_context
from pscl_hpc.report.study_results import RESULTS_FILE, StudyResults, read_results
from pscl_hpc.runs import write_text
from pscl_hpc.segmentation.palette import hex_colour

REPORT_FILE = "report.html"
MOST_OPEN = 8
"""Runs listed unfolded; more are folded away."""
MOST_CURVES = 12
"""Fine-tuning runs with curves of their own."""


@dataclass(frozen=True)
class Report:
    """What :func:`write_report` did."""

    path: Path
    runs: int
    damage: tuple[str, ...]
    """Files that are there and could not be read, each with its reason; the page names them too."""


@dataclass(frozen=True)
class _InspectionPanel:
    run: RunData
    samples: bool
    """Whether the method samples cells."""
    explanation: str
    classes: tuple[ClassStyle, ...]
    images: list[ImageFigure]


@dataclass(frozen=True)
class _RunCharts:
    run: RunData
    charts: list[Chart]


def write_report(paths: Sequence[Path], out: Path | None = None) -> Report:
    """Write the page of all runs in ``paths`` (run folders, or folders that hold some), or that of a study.

    Args:
        paths: at least one; the folder of a study alone.
        out: the file to make or replace; None is ``report.html`` in the first path.

    Raises:
        UserError: a path holds no run, or ``out`` cannot be written.
    """
    if not paths:
        raise UserError("no run folder given; name at least one, for example runs/demo")
    study = read_results(paths[0]) if len(paths) == 1 and (paths[0] / RESULTS_FILE).is_file() else None
    runs = [] if study else collect(paths)
    target = out if out is not None else paths[0] / REPORT_FILE
    if target.is_dir():
        raise UserError(f"{target}: is a folder; name a file after --out, for example {target / REPORT_FILE}")
    if not target.parent.is_dir():
        raise UserError(f"{target.parent}: no such folder; make it or choose another --out")
    text = render_study(study, paths[0]) if study else render(runs)
    try:
        write_text(target, text)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}); choose another --out") from None
    return Report(
        target, study.scored if study else len(runs), tuple(damage for run in runs for damage in run.damage)
    )


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
        errors=[
            ("missed: annotated as a class, predicted as background", hex_colour(ERROR_COLOURS[MISSED])),
            ("extra: background predicted as a class", hex_colour(ERROR_COLOURS[EXTRA])),
            ("one class taken for another", hex_colour(ERROR_COLOURS[CONFUSED])),
        ],
        inspections=[
            _InspectionPanel(
                run,
                any(len(scale.classes) for scale in run.inspection.scales),
                explanation(run.inspection),
                class_styles(run.inspection.classes),
                image_figures(run.inspection),
            )
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
    # The style sheet is a file of this package, the only text that is not escaped beside our own charts.
    return environment.get_template(template).render(
        version=__version__, style=Markup(style), safe=Markup, **values
    )


def _charts(runs: Sequence[RunData], prefix: str) -> list[_RunCharts]:
    found = [_RunCharts(run, run_charts(run, f"{prefix}{index}")) for index, run in enumerate(runs)]
    return [item for item in found if item.charts]


def _validation(runs: Sequence[RunData]) -> Chart | None:
    """Mean Dice on validation images of all fine-tuning runs: scratch in one colour, pretrained in another."""
    if len(runs) < 2:
        return None
    coloured = [(run, 1 if run.setting("pretrained") else 0) for run in runs]
    return comparison("validation", coloured, "val/mean_dice", ("from scratch", "pretrained"))


def _score(value: float | None) -> str:
    return "\N{EN DASH}" if value is None else f"{value:.3f}"


def _percent(value: float) -> str:
    # 99.97 % must not read as 100 %: that would say that nothing is wrong.
    return "100 %" if value == 1 else f"{min(100 * value, 99.9):.1f} %"


def _duration(run: RunData) -> str:
    times = [line["time"] for line in run.metrics if isinstance(line.get("time"), int | float)]
    start, end = parse_time(run.record.get("created")), parse_time(run.record.get("finished"))
    if start and end:
        seconds = (end - start).total_seconds()
    elif len(times) > 1:
        seconds = max(times) - min(times)
    else:
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _pretty(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
