"""Run folders as plain data. A missing part becomes a note and a damaged one is named; neither stops a report."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pscl_hpc.config import parse_yaml
from pscl_hpc.errors import UserError
from pscl_hpc.methods import display_name
from pscl_hpc.pretraining.inspection import INSPECTION_FILE
from pscl_hpc.results.evaluation import Evaluation, number, read_evaluation
from pscl_hpc.results.inspection import Inspection, read_inspection
from pscl_hpc.runs import read_metrics
from pscl_hpc.runs.places import CONFIG_FILE
from pscl_hpc.runs.record import METRICS_FILE, RECORD_FILE
from pscl_hpc.segmentation.evaluate import EVALUATION_FILE

DEPTH = 4
"""How many levels of folders are searched for runs."""


@dataclass
class RunData:
    """The content of one run folder."""

    path: Path
    label: str
    """Short and unique among the runs that are read together."""
    kind: str
    """``"pretrain"``, ``"finetune"``, ``"classifier"`` or ``""`` when unknown."""
    status: str
    """``"done"``, ``"running"``, ``"stopped"``, ``"failed"`` or ``""``."""
    record: dict[str, Any]
    config: dict[str, Any]
    config_text: str
    metrics: list[dict[str, Any]]
    """Lines in the order of their steps."""
    evaluation: Evaluation | None = None
    inspection: Inspection | None = None
    notes: list[str] = field(default_factory=list)
    """What is missing or unfinished, in sentences without the run's name."""
    damage: list[str] = field(default_factory=list)
    """Files that exist and cannot be read."""

    def setting(self, key: str, default: Any = "") -> Any:
        """A value of the configuration by dotted key, or what the run has decided in its place."""
        decided = self.record.get("decided")
        if isinstance(decided, dict) and decided.get(key) is not None:
            return decided[key]
        node: Any = self.config
        for part in key.split("."):
            if not isinstance(node, dict) or part not in node:
                return default
            node = node[part]
        return default if node is None else node

    def locate(self, path: str) -> Path:
        """A path of the configuration.

        A relative path starts at the working directory of the run, which follows from the place of its folder, or at
        the present one if it exists only there.
        """
        given = Path(path)
        own = Path(str(self.setting("run")) or f"runs/{self.path.name}")
        place = self.path.resolve()
        if given.is_absolute() or own.is_absolute() or place.parts[-len(own.parts) :] != own.parts:
            return given
        there = place.parents[len(own.parts) - 1] / given
        return there if there.exists() or not given.exists() else given

    @property
    def method(self) -> str:
        """Display name of the pretraining method."""
        return display_name(str(self.setting("method.name", "an unknown method")))

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """One entry for each process that worked on the run."""
        found = self.record.get("attempts")
        return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []

    @property
    def steps(self) -> int:
        """The last logged step."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Run folders among ``paths`` and below them, each once.

    Raises:
        UserError: a path does not exist or contains no run.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path}: run folder not found; by default runs are in runs/")
        below = list(_walk(path, DEPTH))
        if not below:
            raise UserError(f"{path}: no run found (no {CONFIG_FILE} or {RECORD_FILE}); name a run folder")
        for run in below:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def collect(paths: Sequence[Path]) -> list[RunData]:
    """Read all runs found by :func:`find_runs`: pretrainings first, then by name."""
    folders = find_runs(paths)
    labels = [folder.resolve().name for folder in folders]
    if len(set(labels)) < len(labels):
        top = Path(os.path.commonpath([folder.resolve() for folder in folders]))
        labels = [str(folder.resolve().relative_to(top)) for folder in folders]
    runs = [read_run(folder, label) for folder, label in zip(folders, labels, strict=True)]
    return sorted(runs, key=lambda run: (run.kind != "pretrain", _natural(run.label)))


def read_run(path: Path, label: str) -> RunData:
    """Read one run folder, whatever state it is in."""
    damage: list[str] = []
    _, record = _read(path / RECORD_FILE, json.loads, damage)
    # Not load_config: a report also shows runs whose configuration is not valid in this version.
    text, config = _read(path / CONFIG_FILE, parse_yaml, damage)
    run = RunData(
        path=path,
        label=label,
        kind=str(record.get("kind") or config.get("kind") or ""),
        status=str(record.get("status", "")),
        record=record,
        config=config,
        config_text=text,
        metrics=_read_metrics(path / METRICS_FILE, damage),
        damage=damage,
    )
    if not run.metrics:
        run.notes.append("Nothing was logged yet: no curves.")
    _note_status(run)
    try:
        if run.kind == "pretrain" and (path / INSPECTION_FILE).is_file():
            run.inspection = read_inspection(path / INSPECTION_FILE)
        elif run.kind == "pretrain":
            run.notes.append(f"No {INSPECTION_FILE}: sampled patches and feature maps cannot be shown.")
        elif run.kind in ("finetune", "classifier"):
            _add_evaluation(run)
    except UserError as error:
        run.damage.append(str(error))
    return run


def _walk(path: Path, depth: int) -> Iterable[Path]:
    if (path / CONFIG_FILE).is_file() or (path / RECORD_FILE).is_file():
        yield path
    elif depth:
        for child in sorted(path.iterdir(), key=lambda child: _natural(child.name)):
            if child.is_dir() and not child.is_symlink():
                yield from _walk(child, depth - 1)


def _natural(text: str) -> list[tuple[int, str]]:
    """A sorting key by which run-10 comes after run-9."""
    return [(int(part or 0), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


def _read(path: Path, parse: Callable[[str], Any], damage: list[str]) -> tuple[str, dict[str, Any]]:
    """Text and content of a file; empty, and named in ``damage``, where it has no keys and values."""
    text, tree = "", None
    try:
        text = path.read_text(encoding="utf-8")
        tree = parse(text)
    except FileNotFoundError:
        damage.append(f"{path}: not found")
        return "", {}
    except (OSError, ValueError, yaml.YAMLError):
        pass
    if not isinstance(tree, dict) or not tree:
        damage.append(f"{path}: cannot be read, or has no keys and values")
        return text, {}
    return text, tree


def _read_metrics(path: Path, damage: list[str]) -> list[dict[str, Any]]:
    try:
        lines = read_metrics(path)
    except (OSError, UnicodeDecodeError):
        damage.append(f"{path}: cannot be read")
        return []
    return sorted((line for line in lines if number(line["step"]) is not None), key=lambda line: line["step"])


def _note_status(run: RunData) -> None:
    decided = run.record.get("decided")
    if isinstance(decided, dict) and (steps := number(decided.get("schedule.steps"))) is not None:
        run.notes.append(f"The time (schedule.minutes) was enough for {steps:g} steps.")
    total = number(run.setting("schedule.steps", None))
    reached = f" at step {run.steps}" + (f" of {total:g}" if total else "") if run.metrics else ""
    if run.status == "failed":
        error = str(run.record.get("error") or "").strip()
        run.notes.append(f"Failed{reached}: {error or 'no reason was recorded'}")
    elif run.status == "running":
        run.notes.append(f"Not finished: recorded as running{reached}.")
    elif run.status == "stopped":
        run.notes.append(f"Stopped{reached} and not resumed yet.")
    elif run.status != "done":
        run.notes.append("It is not recorded whether this run finished.")


def _add_evaluation(run: RunData) -> None:
    path = run.path / EVALUATION_FILE
    if path.is_file():
        run.evaluation = read_evaluation(path)
        if run.evaluation.inference:
            run.notes.append(f"Scored with {run.evaluation.inference}.")
        return
    found = [value for line in run.metrics if (value := number(line.get("val/mean_dice"))) is not None]
    so_far = f" Best Dice on the validation images: {max(found):.3f}." if found else ""
    run.notes.append(
        f"Not evaluated yet: 'pscl-hpc evaluate {shlex.quote(str(run.path))}' scores it.{so_far}"
    )
