"""Jobs of a toy stage in a temporary folder."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pscl_hpc.config import RunConfig, resolve_config
from pscl_hpc.launch import stage_job
from pscl_hpc.launch.records import JobRecord, job_records, save_job
from pscl_hpc.launch.schedulers import SCHEDULERS, wait_for_end
from pscl_hpc.launch.status import find_runs
from tests.helpers import small_archive

MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with an archive, where pretraining is the toy stage; remaining jobs are killed."""
    folder = tmp_path / "with 'quotes' and blanks"
    folder.mkdir()
    small_archive(folder / "a.h5")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
    monkeypatch.setitem(stage_job.STAGES, "pretrain", "toy_stage:train")
    yield folder
    for run in find_runs(folder):
        for record in job_records(run):
            if (record.cluster, record.host) != ("local", socket.gethostname()):
                continue  # an invented record
            SCHEDULERS[record.cluster].kill(record)
            wait_for_end(record, 10)


@pytest.fixture
def make_config() -> MakeConfig:
    """Configurations of the toy stage: the name selects its behaviour."""

    def make(name: str = "fast", run: str = "", steps: int = 20, **keys: object) -> RunConfig:
        tree = {
            "kind": "pretrain",
            "name": name,
            "run": run,
            "data": {"archive": "a.h5"},
            "method": {"name": "simclr"},
            "schedule": {"steps": steps},
            "checkpoint": {"every_steps": 5},
            **keys,
        }
        return resolve_config({key: value for key, value in tree.items() if value is not None}, source="test")

    return make


@pytest.fixture
def slurm_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of simulated Slurm commands, first on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "srun"):
        (folder / name).write_text(
            "#!/bin/sh\n"
            "echo 'sbatch: error: invalid partition specified' >&2\n"
            "echo 'sbatch: error: Batch job submission failed: invalid partition specified' >&2\n"
            "exit 1\n"
        )
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder


def write_job(run: Path, **values: object) -> JobRecord:
    """The record of a job that has ended or runs on another machine."""
    known: dict[str, object] = {"job": "5", "cluster": "slurm", "stage": "pretrain", "submitted": 1.0}
    place = {"when": "then", "host": "login", "folder": str(Path.cwd()), "commit": ""}
    record = JobRecord(**{**known, **place, **values})  # type: ignore[arg-type]
    (run / "jobs").mkdir(exist_ok=True)
    save_job(run, record)
    return record
