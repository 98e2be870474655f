"""A study from its configuration to its results."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pscl_hpc.archive.synthesis import write_synthetic_archive
from pscl_hpc.config import load_config, to_yaml
from pscl_hpc.config.loading import parse_yaml
from pscl_hpc.errors import UserError
from pscl_hpc.report.study_figures import figure_files
from pscl_hpc.report.study_results import RESULTS_FILE, StudyResults
from pscl_hpc.runs import RunFolder, write_json, write_text
from pscl_hpc.runs.folder import CONFIG_FILE
from pscl_hpc.segmentation.pictures import write_file
from pscl_hpc.study.config import StudyConfig, study_yaml
from pscl_hpc.study.display import Display
from pscl_hpc.study.keys import run_key
from pscl_hpc.study.plan import Job, Plan, make_plan
from pscl_hpc.study.results import gather
from pscl_hpc.study.reuse import copy_run, find_runs, placed
from pscl_hpc.study.schedule import Executor, Outcome, run_jobs
from pscl_hpc.study.stage import is_done, made_from
from pscl_hpc.study.tables import TABLE_FILE, markdown

STUDY_FILE = "study.yaml"
LOCK_FILE = "study.lock"
SYNTHETIC = "synthetic-"
"""How the archive that a study makes itself is called in its folder, before a hash of its settings."""


@dataclass(frozen=True)
class StudyState:
    """A study before or after its jobs."""

    plan: Plan
    done: tuple[str, ...]
    """Keys of finished jobs."""
    elsewhere: dict[str, Path]
    """Run folders of ``reuse`` that some of the others are finished in, by key."""

    @property
    def missing(self) -> list[Job]:
        """Jobs that are not done."""
        return [job for key, job in self.plan.jobs.items() if key not in self.done]


def look(study: StudyConfig) -> StudyState:
    """What a study consists of and what of it is done; a synthetic archive is made if need be.

    Raises:
        UserError: the study does not fit its archive, its folder, or itself.
    """
    _check_folder(study)
    return _state(make_plan(study, _archive(study)))


def run_study(
    study: StudyConfig, executor: Executor, *, jobs: int, progress: bool = True
) -> tuple[StudyState, StudyResults]:
    """Do what is missing of a study and write its results.

    Finished runs are never repeated, those of the studies under ``reuse`` are copied; a job that fails is named in the
    results and tried again by the next call.

    Args:
        study: The study.
        executor: Where its jobs run.
        jobs: How many at a time.
        progress: Show what is happening on standard error.

    Returns:
        The study afterwards, and the content of ``results.json``.

    Raises:
        UserError: as :func:`look`; or another process is running this study.
    """
    _check_folder(study)
    _make_folder(study.folder)
    with _locked(study.folder):
        state = look(study)
        write_text(study.folder / STUDY_FILE, study_yaml(study))
        if state.elsewhere:
            for key, source in state.elsewhere.items():
                copy_run(state.plan.jobs[key], source)
            state = _state(state.plan)
        display = Display(len(state.plan.jobs), len(state.done), jobs, show=progress)
        display.expect(state.missing)
        with display:
            outcomes = run_jobs(state.missing, state.done, Prepared(executor), jobs, display)
        results = write_results(state.plan, outcomes)
        return _state(state.plan), results


def write_results(plan: Plan, outcomes: dict[str, Outcome]) -> StudyResults:
    """Write ``results.json``, ``table.md`` and, of what is scored, ``figure.svg`` and ``figure.png``."""
    results = gather(plan, outcomes)
    write_json(plan.study.folder / RESULTS_FILE, results.model_dump(mode="json"))
    write_text(plan.study.folder / TABLE_FILE, markdown(results))
    for name, data in figure_files(results).items():
        write_file(plan.study.folder / name, data)
    return results


def _state(plan: Plan) -> StudyState:
    done = tuple(
        key
        for key, job in plan.jobs.items()
        if is_done(job.folder, job.config.kind, job.fingerprint, job.tests)
    )
    missing = [job for key, job in plan.jobs.items() if key not in done]
    return StudyState(plan, done, find_runs(missing, plan.study.reuse))


class Prepared:
    """An executor that is given run folders with their configuration in them."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def start(self, job: Job) -> None:
        """Write the configuration of a new run; an unfinished run goes on with the one that it began with."""
        stored = job.folder / CONFIG_FILE
        if stored.is_file():
            begun = load_config(stored)
            key = run_key(begun, job.fingerprint, job.needs)
            if key != job.key:
                raise UserError(
                    f"{job.folder}: its config.yaml was changed after the run began; restore it or move the folder away"
                )
            config = placed(begun, job.config)
            if config != begun:
                write_text(stored, to_yaml(config))
            assert isinstance(config, type(job.config))
            job = dataclasses.replace(job, config=config)
        folder = RunFolder.reserve(job.config)
        if not made_from(job.fingerprint, folder.record):
            raise UserError(
                f"{job.folder}: was made from another archive than the study's; move the folder away to repeat the run"
            )
        # The job compares it with what it finds at the path when it starts.
        if "archive" not in folder.record:
            folder.update(archive=job.fingerprint)
        self._executor.start(job)

    def poll(self) -> dict[str, Outcome]:
        """Jobs that have ended since the last call."""
        return self._executor.poll()

    def stop(self) -> None:
        """End what runs."""
        self._executor.stop()


def _archive(study: StudyConfig) -> str:
    if study.synthetic is None:
        if not Path(study.archive).exists():
            raise UserError(
                f"{study.archive}: no such archive; build it first, or name another with archive=PATH"
            )
        return study.archive
    made = study.synthetic
    # Other settings are another file: one that is there is the right one.
    name = hashlib.sha256(made.model_dump_json().encode()).hexdigest()[:8]
    path = study.folder / f"{SYNTHETIC}{name}.h5"
    if not path.is_file():
        _make_folder(study.folder)
        partial = path.with_name(f".{os.getpid()}-{path.name}")
        try:
            write_synthetic_archive(partial, made.images, made.seed, made.size, made.families)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return str(path)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be made ({error.strerror}); choose another folder with run=..."
        ) from None


def _check_folder(study: StudyConfig) -> None:
    folder = study.folder
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; choose another folder with run=...")
    stored = folder / STUDY_FILE
    if stored.is_file():
        name = _read(stored).get("name")
        if name != study.name:
            raise UserError(f"{folder}: holds the study '{name}'; choose another folder with run=...")
    # A name with a leading dot is a file that a killed process was writing.
    elif folder.is_dir() and any(
        item.name != LOCK_FILE and not item.name.startswith((".", SYNTHETIC)) for item in folder.iterdir()
    ):
        raise UserError(f"{folder}: is not empty and holds no study; choose another folder with run=...")


def _read(path: Path) -> dict[str, Any]:
    try:
        tree: Any = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        tree = None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: cannot be read as a study; restore it from a copy or choose another folder")
    return tree


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / LOCK_FILE).open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder}: another process runs this study; wait for it or stop it first"
            ) from None
        except OSError:
            pass  # A file system without locks: `pscl-hpc doctor` says so.
        yield
