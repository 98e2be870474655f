"""Finished runs of other studies: what is the same run there is copied, and not done again."""

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
from pscl_hpc.runs.folder import CONFIG_FILE
from pscl_hpc.runs.lock import LOCK_FILE
from pscl_hpc.segmentation.config import FinetuneConfig
from pscl_hpc.segmentation.evaluate import EVALUATION_FILE, PREDICTIONS
from pscl_hpc.study.keys import run_key
from pscl_hpc.study.plan import Job
from pscl_hpc.study.stage import is_done

_PARTIAL = ".copied-"


def find_runs(jobs: Iterable[Job], folders: Sequence[str]) -> dict[str, Path]:
    """Where the runs of some jobs are finished already.

    Args:
        jobs: Those that are missing. One that has begun in its own folder goes on there.
        folders: Of other studies; one that is not there (yet) has nothing.

    Returns:
        Run folders by the job's key. The configuration there gives that key, not only the folder's name.
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
    """Copy a finished run to where a job has it: whole or not at all.

    Its files and predictions are copied; checkpoints and what schedulers keep in it are not.
    """
    target = job.folder
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{_PARTIAL}{os.getpid()}-{target.name}")
    try:
        shutil.copytree(source, partial, ignore=lambda folder, names: _left_out(source, Path(folder), names))
        config = load_config(partial / CONFIG_FILE)
        if isinstance(job.config, FinetuneConfig):
            scores = json.loads((partial / EVALUATION_FILE).read_text(encoding="utf-8"))
            write_json(partial / EVALUATION_FILE, {**scores, "pretrained": job.config.pretrained})
        write_text(partial / CONFIG_FILE, to_yaml(placed(config, job.config)))
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def placed(config: RunConfig, plan: RunConfig) -> RunConfig:
    """A configuration with the paths of the same run in a plan: what is not in its key, but names files."""
    paths: dict[str, Any] = {"run": plan.run, "name": plan.name}
    paths["data"] = config.data.model_copy(update={"archive": plan.data.archive})
    if isinstance(plan, FinetuneConfig):
        paths["pretrained"] = plan.pretrained
    return config.model_copy(update=paths)


def _key(run: Path, job: Job) -> str:
    try:
        return run_key(load_config(run / CONFIG_FILE), job.fingerprint, job.needs)
    except UserError:
        return ""


def _left_out(run: Path, folder: Path, names: list[str]) -> set[str]:
    """Links, which could lead out of the study; of the run itself the lock and all folders but the predictions."""
    paths = [folder / name for name in names]
    left = {path.name for path in paths if path.is_symlink()}
    if folder == run:
        left |= {path.name for path in paths if path.is_dir() and path.name != PREDICTIONS} | {LOCK_FILE}
    return left
