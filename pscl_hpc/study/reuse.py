"""Finished runs of other studies are copied instead of repeated."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from pscl_hpc.config import RunConfig, load_config
from pscl_hpc.files import write_json, write_text
from pscl_hpc.runs.lock import LOCK_FILE
from pscl_hpc.runs.places import CONFIG_FILE
from pscl_hpc.runs.record import RECORD_FILE
from pscl_hpc.segmentation.classifier_config import ClassifierConfig
from pscl_hpc.segmentation.evaluate import EVALUATION_FILE, PREDICTIONS
from pscl_hpc.segmentation.trained import SegmentationConfig
from pscl_hpc.study.plan import Job, Plan
from pscl_hpc.study.stored import StoredRuns, began_with

_PARTIAL = ".copied-"


def find_finished(plan: Plan, missing: Iterable[Job]) -> dict[str, Path]:
    """Finished runs of the studies under ``reuse`` that are the same as jobs of this one.

    Args:
        plan: The study. The folders under ``reuse`` need not exist.
        missing: Its missing jobs. A job that has begun in its own folder is resumed there instead.

    Returns:
        Run folders by the key of the job.
    """
    studies = [StoredRuns(Path(folder), plan.jobs) for folder in plan.study.reuse]
    found: dict[str, Path] = {}
    for job in missing:
        if job.folder.exists():
            continue
        runs = (run for study in studies for run in study.find(job))
        run = next(filter(job.is_done, runs), None)
        if run is not None:
            found[job.key] = run
    return found


def copy_run(job: Job, source: Path) -> None:
    """Copy a finished run to the folder of a job, completely or not at all.

    Its files and predictions are copied, but not checkpoints and files of schedulers.
    """
    target = job.folder
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{_PARTIAL}{os.getpid()}-{target.name}")
    try:
        shutil.copytree(source, partial, ignore=lambda folder, names: _left_out(source, Path(folder), names))
        if isinstance(job.config, SegmentationConfig):
            scores = json.loads((partial / EVALUATION_FILE).read_text(encoding="utf-8"))
            write_json(partial / EVALUATION_FILE, {**scores, "pretrained": job.config.pretrained})
            record = json.loads((partial / RECORD_FILE).read_text(encoding="utf-8"))
            write_json(partial / RECORD_FILE, {**record, **began_with(job)})
        # The copy has the name of today's key: it gets today's keys.
        config = load_config(partial / CONFIG_FILE).model_dump(mode="json")
        write_text(partial / CONFIG_FILE, tree_yaml(placed(config, job.config)))
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def placed(tree: Mapping[str, Any], plan: RunConfig) -> dict[str, Any]:
    """The content of a configuration file with the paths of the same run in a plan, which are not part of its key."""
    paths: dict[str, Any] = {"run": plan.run, "name": plan.name}
    paths["data"] = {**tree["data"], "archive": plan.data.archive}
    if isinstance(plan, SegmentationConfig):
        paths["pretrained"] = plan.pretrained
    if isinstance(plan, ClassifierConfig):
        paths["cache"] = plan.cache
    return {**tree, **paths}


def tree_yaml(tree: Mapping[str, Any]) -> str:
    """The content of a configuration file as YAML."""
    return yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True)


def _left_out(run: Path, folder: Path, names: list[str]) -> set[str]:
    """Links, which could lead out of the study; the lock of the run and its folders except the predictions."""
    paths = [folder / name for name in names]
    left = {path.name for path in paths if path.is_symlink()}
    if folder == run:
        left |= {path.name for path in paths if path.is_dir() and path.name != PREDICTIONS} | {LOCK_FILE}
    return left
