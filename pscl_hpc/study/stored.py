"""Which run folders of a study are jobs of a plan, also those from before configurations had some of today's keys.

A run folder keeps its name, which ends in the key that the run had when it began. If that key follows from the
``config.yaml`` there, as written, then the file was not edited, and archive, pretraining and version of this package are
those of the beginning. Read today, the same file gets the defaults of the keys that it lacks: if this gives the key of a
job, the run is the same.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pscl_hpc import __version__
from pscl_hpc.config import RunConfig, read_tree, resolve_config
from pscl_hpc.errors import UserError
from pscl_hpc.runs import RunFolder
from pscl_hpc.runs.checkpoint import CheckpointStore
from pscl_hpc.runs.places import CONFIG_FILE
from pscl_hpc.runs.record import CHECKPOINTS, RECORD_FILE
from pscl_hpc.segmentation.trained import SegmentationConfig
from pscl_hpc.study.keys import run_key, written_key
from pscl_hpc.study.plan import PRETRAINED, SHORT, Job, Plan
from pscl_hpc.study.stage import made_from

_PRETRAINING = "pretraining"
"""Entry of run.json: the folder name of the run's pretraining, and the key that it had when the run began."""


def began_with(job: Job) -> dict[str, Any]:
    """The entries of run.json for a run that begins now, by which later versions find it."""
    return {_PRETRAINING: {Path(job.config.pretrained).name: job.needs}} if job.needs else {}


def in_place(plan: Plan) -> Plan:
    """The plan with the folders that its runs have: a run from before today's keys keeps its own."""
    stored = StoredRuns(plan.study.folder, plan.jobs)
    jobs: dict[str, Job] = {}
    for key, job in plan.jobs.items():
        paths = {}
        found = [] if job.folder.exists() else stored.find(job)
        if found:
            paths["run"] = str(found[0])
        if job.needs:
            paths["pretrained"] = jobs[job.needs].config.run
        jobs[key] = dataclasses.replace(job, config=job.config.model_copy(update=paths)) if paths else job
    return dataclasses.replace(plan, jobs=jobs)


@dataclass(frozen=True)
class _Run:
    folder: Path
    written: dict[str, Any]
    """The content of its configuration file."""
    config: RunConfig
    """The same with today's keys."""
    content: str
    """Today's key, but for that of the pretraining."""
    record: dict[str, Any]


class StoredRuns:
    """The run folders of a study.

    Args:
        folder: The folder of the study, which need not exist.
        jobs: All jobs of the plan, by key.
    """

    def __init__(self, folder: Path, jobs: Mapping[str, Job]) -> None:
        self._folder = folder
        self._jobs = jobs
        self._planned = {job.folder.name for job in jobs.values()}
        self._names: dict[str, dict[str, list[str]]] = {}
        self._runs: dict[Path, _Run | None] = {}
        self._same: dict[str, list[_Run]] = {}

    def find(self, job: Job) -> list[Path]:
        """Folders of runs that are the same as a job: finished ones first, then those with the newest checkpoint."""
        runs = [run.folder for run in self._find(job)]
        if len(runs) < 2:
            return runs

        def progress(run: Path) -> tuple[bool, list[int]]:
            return job.is_done(run), CheckpointStore(run / CHECKPOINTS).steps()[-1:]

        return sorted(runs, key=progress, reverse=True)

    def _find(self, job: Job) -> list[_Run]:
        if job.key not in self._same:
            content = run_key(job.config, job.fingerprint)
            alike = (run for run in self._alike(job) if run.content == content)
            self._same[job.key] = [run for run in alike if self._is_unchanged(run, job)]
        return self._same[job.key]

    def _alike(self, job: Job) -> Iterator[_Run]:
        """Runs whose folders are named like a job's but for the key."""
        kind, own = job.folder.parent.name, job.folder.name
        for name in self._listed(kind).get(_stem(own), []):
            # A folder with the name of another planned job belongs to that job.
            if name not in self._planned or name == own:
                place = self._folder / kind / name
                if place not in self._runs:
                    self._runs[place] = _read(place, job)
                if (run := self._runs[place]) is not None:
                    yield run

    def _listed(self, kind: str) -> dict[str, list[str]]:
        """Names of the run folders of a kind, by the part before the key."""
        if kind not in self._names:
            names: dict[str, list[str]] = {}
            try:
                found = sorted(os.listdir(self._folder / kind))
            except OSError:
                found = []
            for name in found:
                names.setdefault(_stem(name), []).append(name)
            self._names[kind] = names
        return self._names[kind]

    def _is_unchanged(self, run: _Run, job: Job) -> bool:
        """Whether the name of a run is the hash of its content and of the job's pretraining."""

        def named(pretraining: str) -> bool:
            key = written_key(run.written, job.fingerprint, pretraining)
            return run.folder.name.rpartition("--")[2] == key[:SHORT]

        if named(job.needs):
            return True
        if not job.needs:
            return False
        # The pretraining may have had another key, too.
        assert isinstance(run.config, SegmentationConfig)
        place = self._folder / PRETRAINED / Path(run.config.pretrained).name
        trunk = next((item for item in self._find(self._jobs[job.needs]) if item.folder == place), None)
        if trunk is None:
            return False
        began = run.record.get(_PRETRAINING, {}).get(place.name)
        return named(began or written_key(trunk.written, job.fingerprint))


def _stem(name: str) -> str:
    return name.rpartition("--")[0]


def _read(folder: Path, job: Job) -> _Run | None:
    """A run of the job's kind; None if it cannot be read, or another version or archive has had a part in it."""
    try:
        written = read_tree(folder / CONFIG_FILE)
        if written.get("kind") != job.config.kind:
            return None
        config = resolve_config(written, source=str(folder))
        # A run that has not begun has no record.
        record = RunFolder.load(folder).record if (folder / RECORD_FILE).exists() else {}
    except UserError:
        return None
    versions = (attempt.get("versions", {}).get("pscl-hpc") for attempt in record.get("attempts", []))
    if any(version not in (None, __version__) for version in versions):
        return None
    if not made_from(job.fingerprint, record.get("archive")):
        return None
    return _Run(folder, written, config, run_key(config, job.fingerprint), record)
