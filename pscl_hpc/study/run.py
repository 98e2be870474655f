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

from pscl_hpc.config import load_config, parse_yaml, read_tree, resolve_config
from pscl_hpc.errors import UserError
from pscl_hpc.files import write_bytes, write_json, write_text
from pscl_hpc.results.study import RESULTS_FILE, StudyResults
from pscl_hpc.runs import RunFolder
from pscl_hpc.runs.places import CONFIG_FILE
from pscl_hpc.study.config import StudyConfig, study_yaml
from pscl_hpc.study.display import Display
from pscl_hpc.study.gather import gather
from pscl_hpc.study.keys import run_key
from pscl_hpc.study.plan import Job, Plan, make_plan
from pscl_hpc.study.reuse import copy_run, find_finished, placed, tree_yaml
from pscl_hpc.study.schedule import Executor, Outcome, run_jobs
from pscl_hpc.study.stage import made_from
from pscl_hpc.study.stored import began_with, in_place

STUDY_FILE = "study.yaml"
LOCK_FILE = "study.lock"
SYNTHETIC = "synthetic-"
"""Prefix of the archive that a study makes in its folder; a hash of its settings follows."""


@dataclass(frozen=True)
class StudyState:
    """A study before or after its jobs."""

    plan: Plan
    done: tuple[str, ...]
    """Keys of finished jobs."""
    elsewhere: dict[str, Path]
    """By key, run folders of ``reuse`` in which some of the missing jobs are finished."""

    @property
    def missing(self) -> list[Job]:
        """Jobs that are not done."""
        return [job for key, job in self.plan.jobs.items() if key not in self.done]


def look(study: StudyConfig) -> StudyState:
    """The jobs of a study and which of them are done; its synthetic archive is made if necessary.

    Raises:
        UserError: the study is not valid, or does not fit its archive or its folder.
    """
    _check_folder(study)
    return _state(in_place(make_plan(study, _archive(study))))


def run_study(
    study: StudyConfig, executor: Executor, *, jobs: int, progress: bool = True
) -> tuple[StudyState, StudyResults]:
    """Run the missing jobs of a study and write its results.

    Finished runs are never repeated, and those of the studies under ``reuse`` are copied. A job that fails is named in
    the results and tried again by the next call. An interrupted study has the results of what has finished.

    Args:
        study: The study.
        executor: Where its jobs run.
        jobs: Jobs at a time.
        progress: Show progress on standard error.

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
        try:
            with Display(state.missing, len(state.plan.jobs), jobs, show=progress) as display:
                outcomes = run_jobs(state.missing, state.done, executor, jobs, display, _prepare)
        except (KeyboardInterrupt, SystemExit):
            # 'report' shows what has finished so far.
            write_results(state.plan, {})
            raise
        results = write_results(state.plan, outcomes)
        return _state(state.plan), results


def write_results(plan: Plan, outcomes: dict[str, Outcome]) -> StudyResults:
    """Write ``results.json``, ``table.md`` and, if there are scores, ``figure.svg`` and ``figure.png``."""
    results = gather(plan, outcomes)
    write_json(plan.study.folder / RESULTS_FILE, results.model_dump(mode="json"))
    # Imported here: a plan needs no figures.
    from pscl_hpc.report.study_figures import figure_files
    from pscl_hpc.report.study_text import TABLE_FILE, markdown

    write_text(plan.study.folder / TABLE_FILE, markdown(results))
    for name, data in figure_files(results).items():
        write_bytes(plan.study.folder / name, data)
    return results


def _state(plan: Plan) -> StudyState:
    done = tuple(key for key, job in plan.jobs.items() if job.is_done())
    state = StudyState(plan, done, {})
    return dataclasses.replace(state, elsewhere=find_finished(plan, state.missing))


def _prepare(job: Job) -> Job:
    """Write the configuration of a new run; an unfinished run is resumed with the configuration that it began with."""
    stored = job.folder / CONFIG_FILE
    if stored.is_file():
        begun = load_config(stored)
        if run_key(begun, job.fingerprint, job.needs) != job.key:
            raise UserError(
                f"{stored}: was changed after the run began; restore it or move the folder away to repeat the run"
            )
        # The archive or the study may have been moved. Other keys stay as written: the folder's name is their hash.
        written = read_tree(stored)
        moved = placed(written, job.config)
        if moved != written:
            write_text(stored, tree_yaml(moved))
        config = resolve_config(moved, source=str(stored))
        assert isinstance(config, type(job.config))
        job = dataclasses.replace(job, config=config)
    folder = RunFolder.reserve(job.config)
    if not made_from(job.fingerprint, folder.record.get("archive")):
        raise UserError(
            f"{job.folder}: was made from another archive than the study's; move the folder away to repeat the run"
        )
    # The job compares it with the archive that it finds at its start.
    if "archive" not in folder.record:
        folder.update(archive=job.fingerprint, **began_with(job))
    return job


def _archive(study: StudyConfig) -> str:
    if study.synthetic is None:
        if not Path(study.archive).exists():
            raise UserError(
                f"{study.archive}: archive not found; build it, or name another with archive=PATH"
            )
        return study.archive
    made = study.synthetic
    # The name follows from the settings: a file of this name is the right one.
    name = hashlib.sha256(made.model_dump_json().encode()).hexdigest()[:8]
    path = study.folder / f"{SYNTHETIC}{name}.h5"
    if not path.is_file():
        _make_folder(study.folder)
        partial = path.with_name(f".{os.getpid()}-{path.name}")
        try:
            # Imported here: it takes longer than a plan.
            from pscl_hpc.archive.synthesis import write_synthetic_archive

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
            f"{folder}: cannot be created ({error.strerror}); choose another folder with run=..."
        ) from None


def _check_folder(study: StudyConfig) -> None:
    folder = study.folder
    advice = "choose another folder with run=..."
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; {advice}")
    stored = folder / STUDY_FILE
    if stored.is_file():
        try:
            tree: Any = parse_yaml(stored.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            tree = None
        if not isinstance(tree, dict):
            raise UserError(f"{stored}: cannot be read; restore it from a copy or {advice}")
        if tree.get("name") != study.name:
            raise UserError(f"{folder}: contains the study '{tree.get('name')}'; {advice}")
    # A leading dot marks a file that a killed process was writing.
    elif folder.is_dir() and any(
        item.name != LOCK_FILE and not item.name.startswith((".", SYNTHETIC)) for item in folder.iterdir()
    ):
        raise UserError(f"{folder}: is not empty and is not the folder of a study; {advice}")


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
            pass  # A file system without locks; `pscl-hpc doctor` reports it.
        yield
