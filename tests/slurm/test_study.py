"""A study whose jobs are arrays of a real Slurm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pscl_hpc.cli.main import main
from pscl_hpc.errors import EXIT_DONE
from pscl_hpc.launch.records import job_records
from pscl_hpc.results.study import read_results
from tests.study.material import study_file, write_archive

METHODS = [
    {"name": "none", "pretrain": "none"},
    {"name": "simclr", "pretrain": {"method": {"name": "simclr"}}},
]
DATASETS = [{"name": "alloy", "references": ["alloy/t0", "alloy/t1"]}]


def test_a_study_of_arrays_equals_one_on_this_machine(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = write_archive(place / "alloys.h5")
    here, there = (
        study_file(archive, place / name, methods=METHODS, datasets=DATASETS) for name in ("here", "there")
    )
    assert main(["study", str(here), "--jobs", "2", "--threads", "1"]) == EXIT_DONE
    capsys.readouterr()
    command = ["submit", "study", "--config", str(there), "--cluster", "slurm", "--time", "10", "--cpus", "1"]
    assert main([*command, "--json"]) == EXIT_DONE
    answer = json.loads(capsys.readouterr().out)
    assert answer["jobs_missing"] == 0
    records = [
        record for run in sorted((place / "there" / "finetune").iterdir()) for record in job_records(run)
    ]
    assert len(records) == 4
    assert all("_" in record.job and record.cluster == "slurm" for record in records), "tasks of arrays"

    def scores(folder: str) -> dict[tuple[str, ...], float | None]:
        rows = read_results(place / folder).rows
        return {(row.method, row.split, *row.references): row.mean_dice for row in rows}

    assert len(scores("here")) >= 4

    assert scores("there") == scores("here")
