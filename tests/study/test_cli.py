"""The command: its words and exit codes, and studies whose jobs are real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pscl_hpc.cli.main import main
from pscl_hpc.errors import EXIT_DONE, EXIT_INPUT, EXIT_SKIPPED
from pscl_hpc.results.study import read_results
from pscl_hpc.runs import RunFolder
from tests.helpers import PATIENCE_S

from .material import study_file

TWO = [{"name": "none", "pretrain": "none"}, {"name": "simclr", "pretrain": {"method": {"name": "simclr"}}}]
ONE_REFERENCE = [{"name": "alloy", "references": ["alloy/t0"]}]
QUICK = Path(__file__).parents[2] / "configs" / "studies" / "quick.yaml"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.yaml"], "nowhere.yaml"),
        (["{file}", "run=/dev/null/x"], "/dev/null/x: "),
        (["{file}", "archive=gone.h5"], "gone.h5: "),
        (["{file}", "datasets=[{{name: allov}}]"], "did you mean 'alloy'"),
        (["{file}", "pretrain_per=image"], "pretrain_per"),
        (["{file}", "budgetts=[1]"], "did you mean 'budgets'"),
        (["{file}", "--jobs", "0"], "--jobs"),
        (["{file}", "--gpus", "1"], "--cluster slurm"),
        (["{file}", "--cluster", "local", "--partition", "gpu"], "partition"),
        (["{file}", "--cluster", "local", "--profile", "{profile}"], "4"),
    ],
)
def test_mistakes_end_in_one_sentence(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    file = study_file(archive, tmp_path / "study", methods=TWO)
    profile = tmp_path / "profile.yaml"
    profile.write_text("{tasks_per_node: 4}")
    code = main(["study", *(text.format(file=file, profile=profile) for text in arguments)])
    error = capsys.readouterr().err.strip()
    assert code == EXIT_INPUT
    assert len(error.splitlines()) == 1
    assert error.startswith("error: ")
    assert said in error
    assert not (tmp_path / "study" / "finetune").exists()


def test_a_study_can_be_submitted(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(study_file(archive, tmp_path / "study", methods=TWO))
    command = ["submit", "study", "--config", file, "--cluster", "local"]
    assert main([*command, "--nodes", "2"]) == EXIT_INPUT
    assert "--profile" in capsys.readouterr().err
    assert main([*command, "--dry-run"]) == EXIT_DONE
    submitted = capsys.readouterr().out
    assert main(["study", file, "--dry-run"]) == EXIT_DONE
    assert submitted == capsys.readouterr().out


def test_a_dry_run_says_what_would_run_and_runs_nothing(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = study_file(archive, tmp_path / "study", methods=TWO)
    assert main(["study", str(file), "--dry-run", "--json"]) == EXIT_DONE
    plan = json.loads(capsys.readouterr().out)
    assert plan["pretrain"] == {"runs": 1, "missing": 1, "finished_elsewhere": 0}
    assert plan["finetune"] == {"runs": 6, "missing": 6, "finished_elsewhere": 0}
    assert plan["jobs"][0]["job"] == "pretraining simclr seed 10"
    assert not (tmp_path / "study").exists()
    assert main(["study", str(file), "--dry-run"]) == EXIT_DONE
    assert "pool of simclr: 7 images" in capsys.readouterr().out


def test_every_study_in_the_repository_is_whole(tmp_path: Path) -> None:
    from pscl_hpc.config import resolve_config
    from pscl_hpc.study.config import load_study

    files = sorted(QUICK.parent.glob("*.yaml"))
    assert {"one-shot", "one-image", "quick", "data-efficiency", "core"} <= {file.stem for file in files}
    for file in files:
        study = load_study(file, [] if file == QUICK else ["archive=alloys.h5"])
        for entry in study.methods:
            if entry.pretrain is not None:
                tree = {**entry.pretrain, "kind": "pretrain"}
                tree["data"] = {**tree.get("data", {}), "archive": "alloys.h5"}
                tree["method"] = {**tree["method"]}
                if tree["method"]["name"] in ("pscl-simclr", "pscl-moco"):
                    tree["method"]["reference"] = {**tree["method"].get("reference", {}), "ids": ["a/b"]}
                resolve_config(tree, source=f"{file} {entry.name}")
            merged = {**entry.finetune, "kind": "finetune", "references": ["a/b"]}
            resolve_config({**merged, "data": {"archive": "alloys.h5"}}, source=f"{file} {entry.name}")


def stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


def test_a_killed_study_resumes_where_it_was(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The study is killed while it pretrains; its job stops by itself; the same command finishes everything, once."""
    folder = tmp_path / "study"
    changes: dict[str, Any] = {
        "methods": TWO,
        "datasets": ONE_REFERENCE,
        "pretrain": {
            "data": {"splits": ["train", ""], "datasets": ["alloy", "other"]},
            "model": {"widths": [4, 8, 8]},
            "views": {"size": [32, 32]},
            "batch_size": 3,
            "schedule": {"steps": 160},
            "checkpoint": {"every_steps": 10, "keep_best": False},
            "log": {"every_steps": 20},
        },
    }
    file = study_file(archive, folder, **changes)
    command = [sys.executable, "-m", "pscl_hpc.cli", "study", str(file), "--threads", "1"]
    study = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        while not (found := [*folder.glob("pretrain/*/checkpoints/*10*")]):
            assert study.poll() is None
            time.sleep(0.02)
        trunk = found[0].parents[1]
    finally:
        os.kill(study.pid, signal.SIGKILL)
        study.wait()
    end = time.monotonic() + PATIENCE_S
    while (status := RunFolder.load(trunk).record["status"]) == "running":
        assert time.monotonic() < end, "the job outlived its study"
        time.sleep(0.05)
    assert status == "stopped"
    assert RunFolder.load(trunk).metrics()[-1]["step"] < 160

    assert main(["study", str(file), "--threads", "1", "--jobs", "2"]) == EXIT_DONE
    printed = capsys.readouterr()
    assert "3/3" in printed.err
    assert "| simclr | 1 |" in printed.out
    record = RunFolder.load(trunk).record
    assert (record["status"], len(record["attempts"])) == ("done", 2)
    steps = [line["step"] for line in RunFolder.load(trunk).metrics()]
    assert steps == [1, *range(20, 161, 20)]
    results = read_results(folder)
    assert {(row.method, row.split) for row in results.rows} == {
        (method, split) for method in ("none", "simclr") for split in ("test", "test_ood")
    }
    assert all(row.seconds["finetune"] > 0 and row.seconds["evaluate"] > 0 for row in results.rows)
    assert all(("pretrain" in row.seconds) == (row.method == "simclr") for row in results.rows)
    assert (folder / "report.html").is_file()

    before = stamps(folder)
    assert main(["study", str(file), "--json"]) == EXIT_DONE
    assert stamps(folder) == before
    assert json.loads(capsys.readouterr().out)["jobs_missing"] == 0


def test_a_job_that_breaks_is_named_and_the_others_go_on(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A learning rate beyond all bounds makes a real fine-tuning fail; the other method's is scored."""
    methods = [
        {"name": "none", "pretrain": "none"},
        {"name": "wild", "pretrain": "none", "finetune": {"optimiser": {"name": "adam", "lr": 1e30}}},
    ]
    file = study_file(archive, tmp_path / "study", methods=methods, datasets=ONE_REFERENCE)
    assert main(["study", str(file), "--threads", "1", "--jobs", "2"]) == EXIT_SKIPPED
    error = capsys.readouterr().err
    assert "failed: alloy t0 budget 1 seed 10 wild: the loss is not finite at step" in error
    results = read_results(tmp_path / "study")
    assert {row.method for row in results.rows} == {"none"}
    assert [item.state for item in results.failed] == ["failed"]


def test_the_quick_study_makes_its_own_alloys(tmp_path: Path) -> None:
    """The study of CI, made smaller still."""
    folder = tmp_path / "quick"
    small = [
        "synthetic.size=[48,48]",
        "synthetic.images=8",
        "pretrain.schedule.steps=3",
        "finetune.schedule.steps=3",
    ]
    small += ["pretrain.views.size=[32,32]", "finetune.crop=[32,32]", "budgets=[square-24]"]
    references = "datasets=[{name: synthetic_particles, references: {count: 1}}]"
    methods = "methods=[{name: none, pretrain: none},{name: pscl, pretrain: {method: {name: pscl-simclr}}}]"
    arguments = ["study", str(QUICK), f"run={folder}", *small, references, methods, "--threads", "1"]
    assert main(arguments) == EXIT_DONE
    results = read_results(folder)
    assert [(line.method, line.budget) for line in results.table] == [
        ("none", "square-24"),
        ("pscl", "square-24"),
    ]
    assert len(list(folder.glob("synthetic-*.h5"))) == 1
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("<b>Micrograph</b>") == 1
    assert "<b>Errors</b>, pscl" in page
