"""Finished runs of other studies are copied instead of repeated."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pscl_hpc.config import RunConfig, load_config, to_yaml
from pscl_hpc.errors import UserError
from pscl_hpc.runs import write_json, write_text
from pscl_hpc.runs.lock import LOCK_FILE
from pscl_hpc.runs.places import CONFIG_FILE
from pscl_hpc.segmentation.classifier_config import ClassifierConfig
from pscl_hpc.segmentation.evaluate import EVALUATION_FILE, PREDICTIONS, SegmentationConfig
from pscl_hpc.study.keys import run_key
from pscl_hpc.study.plan import Job
from pscl_hpc.study.stage import is_done

_PARTIAL = ".copied-"


def find_finished(jobs: Iterable[Job], folders: Sequence[str]) -> dict[str, Path]:
    """Finished runs of other studies that are the same as jobs of this one.

    Args:
        jobs: The missing ones. A job that has begun in its own folder is resumed there instead.
        folders: Folders of other studies, which need not exist.

    Returns:
        Run folders by the key of the job. The key is computed from the configuration there.
    """
    found: dict[str, Path] = {}
    for job in jobs:
        if job.folder.exists():
            continue
        for folder in folders:
            run = Path(folder) / job.folder.parent.name / job.folder.name
            if is_done(run, job.config.kind, job.fingerprint, job.tests) and _key(run, job) == job.key:
                found[job.key] = run
                break
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
        config = load_config(partial / CONFIG_FILE)
        if isinstance(job.config, SegmentationConfig):
            scores = json.loads((partial / EVALUATION_FILE).read_text(encoding="utf-8"))
            write_json(partial / EVALUATION_FILE, {**scores, "pretrained": job.config.pretrained})
        write_text(partial / CONFIG_FILE, to_yaml(placed(config, job.config)))
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def placed(config: RunConfig, plan: RunConfig) -> RunConfig:
    """A configuration with the paths of the same run in a plan, which are not part of its key."""
    paths: dict[str, Any] = {"run": plan.run, "name": plan.name}
    paths["data"] = config.data.model_copy(update={"archive": plan.data.archive})
    if isinstance(plan, SegmentationConfig):
        paths["pretrained"] = plan.pretrained
    if isinstance(plan, ClassifierConfig):
        paths["cache"] = plan.cache
    return config.model_copy(update=paths)


def _key(run: Path, job: Job) -> str:
    try:
        return run_key(load_config(run / CONFIG_FILE), job.fingerprint, job.needs)
    except UserError:
        return ""


def _left_out(run: Path, folder: Path, names: list[str]) -> set[str]:
    """Links, which could lead out of the study; the lock of the run and its folders except the predictions."""
    paths = [folder / name for name in names]
    left = {path.name for path in paths if path.is_symlink()}
    if folder == run:
        left |= {path.name for path in paths if path.is_dir() and path.name != PREDICTIONS} | {LOCK_FILE}
    return left
