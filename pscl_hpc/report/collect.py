"""Run folders to plain data for a page. Missing parts become notes, damaged ones are named; nothing stops here."""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pscl_hpc.config.loading import parse_yaml
from pscl_hpc.errors import UserError
from pscl_hpc.pretraining.inspection import INSPECTION_FILE
from pscl_hpc.report.artefacts import (
    DamagedFile,
    Evaluation,
    Inspection,
    number,
    read_evaluation,
    read_inspection,
)
from pscl_hpc.runs import read_metrics
from pscl_hpc.runs.folder import CONFIG_FILE, METRICS_FILE, RECORD_FILE
from pscl_hpc.segmentation.evaluate import EVALUATION_FILE

METHOD_NAMES = {"pscl-simclr": "PSCL-SimCLR", "simclr": "SimCLR"}
DEPTH = 4
"""Folders below a named one that are searched for runs."""


@dataclass
class RunData:
    """Everything the page shows of one run."""

    path: Path
    label: str
    """Short and unique on the page."""
    kind: str
    """``"pretrain"``, ``"finetune"`` or ``""`` when neither record nor configuration tells."""
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
    """Files that are there and cannot be read."""

    def setting(self, key: str, default: Any = "") -> Any:
        """A value of the configuration by dotted key."""
        node: Any = self.config
        for part in key.split("."):
            if not isinstance(node, dict) or part not in node:
                return default
            node = node[part]
        return default if node is None else node

    def locate(self, path: str) -> Path:
        """A path of the configuration.

        Relative ones start where the run was started, which its folder tells, or here where they exist here alone.
        """
        given = Path(path)
        if given.is_absolute():
            return given
        own = Path(str(self.setting("run")) or f"runs/{self.path.name}")
        place = self.path.resolve()
        if own.is_absolute() or place.parts[-len(own.parts) :] != own.parts:
            return given
        there = place.parents[len(own.parts) - 1] / given
        return there if there.exists() or not given.exists() else given

    @property
    def method(self) -> str:
        """The pretraining method's name as people write it."""
        name = str(self.setting("method.name", "an unnamed method"))
        return METHOD_NAMES.get(name, name)

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
    """Run folders among ``paths`` and below them, each once: pretraining first, then by name.

    Raises:
        UserError: when a path does not exist or holds no run.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path}: no such run folder; runs lie in runs/ by default")
        below = list(_walk(path, DEPTH))
        if not below:
            raise UserError(
                f"{path}: holds no run, no {CONFIG_FILE} or {RECORD_FILE} in it or below; name a run folder"
            )
        for run in below:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def collect(paths: Sequence[Path]) -> list[RunData]:
    """Read all runs found by :func:`find_runs`."""
    folders = find_runs(paths)
    labels = _labels(folders)
    runs = [read_run(folder, label) for folder, label in zip(folders, labels, strict=True)]
    return sorted(runs, key=lambda run: (run.kind != "pretrain", _natural(run.label)))


def read_run(path: Path, label: str) -> RunData:
    """Read one run folder, whatever state it is in."""
    damage: list[str] = []
    record = _read_record(path / RECORD_FILE, damage)
    text, config = _read_config(path / CONFIG_FILE, damage)
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
    if run.kind == "pretrain":
        _add_inspection(run)
    elif run.kind == "finetune":
        _add_evaluation(run)
    return run


def parse_time(text: Any) -> datetime.datetime | None:
    """An ISO time with zone, or None."""
    try:
        return datetime.datetime.fromisoformat(str(text)).astimezone()
    except ValueError:
        return None


def _walk(path: Path, depth: int) -> Iterable[Path]:
    if (path / CONFIG_FILE).is_file() or (path / RECORD_FILE).is_file():
        yield path
    elif depth:
        for child in sorted(path.iterdir(), key=lambda child: _natural(child.name)):
            if child.is_dir() and not child.is_symlink():
                yield from _walk(child, depth - 1)


def _labels(folders: Sequence[Path]) -> list[str]:
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) == len(names):
        return names
    top = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    return [str(folder.resolve().relative_to(top)) for folder in folders]


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(part or 0), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


def _read_record(path: Path, damage: list[str]) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        record = None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        record = {}
    if not isinstance(record, dict) or not record:
        damage.append(f"{path}: {'is missing' if record is None else 'cannot be read as JSON'}")
        return {}
    return record


def _read_config(path: Path, damage: list[str]) -> tuple[str, dict[str, Any]]:
    # Plain YAML and not load_config: a report also shows runs of an older or newer schema.
    try:
        text = path.read_text(encoding="utf-8")
        tree = parse_yaml(text)
    except FileNotFoundError:
        damage.append(f"{path}: is missing")
        return "", {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        tree, text = None, ""
    if not isinstance(tree, dict):
        damage.append(f"{path}: cannot be read as YAML")
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
    total = number(run.setting("schedule.steps", None))
    reached = f" at step {run.steps}" + (f" of {total:g}" if total else "") if run.metrics else ""
    error = str(run.record.get("error") or "").strip()
    if run.status == "failed":
        run.notes.append(f"Failed{reached}: {error or 'no reason was recorded'}")
    elif run.status == "running":
        run.notes.append(f"Not finished: the record says that it is running{reached}.")
    elif run.status == "stopped":
        run.notes.append(f"Stopped{reached} and not continued yet.")
    elif run.status != "done":
        run.notes.append("It is not recorded whether this run finished.")


def _add_inspection(run: RunData) -> None:
    path = run.path / INSPECTION_FILE
    if not path.is_file():
        run.notes.append(f"No {INSPECTION_FILE}: sampled patches and feature maps cannot be shown.")
        return
    try:
        run.inspection = read_inspection(path)
    except DamagedFile as error:
        run.damage.append(f"{path}: {error}")


def _add_evaluation(run: RunData) -> None:
    path = run.path / EVALUATION_FILE
    if path.is_file():
        try:
            run.evaluation = read_evaluation(path)
            if run.evaluation.inference:
                run.notes.append(f"Scored with {run.evaluation.inference}.")
        except DamagedFile as error:
            run.damage.append(f"{path}: {error}")
    else:
        best = max(
            (v for line in run.metrics if (v := number(line.get("val/mean_dice"))) is not None), default=None
        )
        so_far = f" Best Dice on the validation images: {best:.3f}." if best is not None else ""
        run.notes.append(f"Not evaluated yet: 'pscl-hpc evaluate {run.path}' scores it.{so_far}")
