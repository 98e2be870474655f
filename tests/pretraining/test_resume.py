"""The same numbers again: by the seed, after a kill, after damage; and errors that end a run or its resumption."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from pscl_hpc.config import to_yaml
from pscl_hpc.errors import JobError, UserError
from pscl_hpc.models import load_trunk
from pscl_hpc.pretraining import pretrain
from pscl_hpc.pretraining import task as task_module
from pscl_hpc.pretraining.config import PretrainConfig
from pscl_hpc.runs import RunFolder
from tests.helpers import PATIENCE_S, small_archive, small_config
from tests.pretraining.products import values


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(load_trunk(run).state_dict())


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


def test_same_seed_same_numbers_other_seed_other_numbers(archive: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        pretrain(small_config(archive, tmp_path / name, seed=seed))
    assert values(tmp_path / "a") == values(tmp_path / "b")
    assert_same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert values(tmp_path / "a") != values(tmp_path / "c")


def test_reading_processes_change_nothing(archive: Path, tmp_path: Path) -> None:
    pretrain(small_config(archive, tmp_path / "here", schedule={"steps": 2}))
    pretrain(
        small_config(archive, tmp_path / "there", schedule={"steps": 2}, runtime={"threads": 1, "workers": 1})
    )
    assert_same(weights(tmp_path / "here"), weights(tmp_path / "there"))


def test_killed_and_resumed_equals_uninterrupted(archive: Path, tmp_path: Path) -> None:
    whole = small_config(archive, tmp_path / "whole", schedule={"steps": 40}, log={"every_steps": 5})
    pretrain(whole)
    broken = small_config(archive, tmp_path / "broken", schedule={"steps": 40}, log={"every_steps": 5})
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(broken))
    # Killed inside at a known step, so that this process cannot be too late; earlier checkpoints may be incomplete.
    script = (
        "import os, signal, sys\n"
        "from pscl_hpc.cli.main import main\n"
        "from pscl_hpc.training import Loop\n"
        "step = Loop.step\n"
        "def deadly(self, *arguments, **options):\n"
        "    if self.position.step == 27 and self.folder.checkpoints.steps():\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self, *arguments, **options)\n"
        "Loop.step = deadly\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", script, "pretrain", "--config", str(file)]
    killed = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=PATIENCE_S)
    assert killed.returncode == -signal.SIGKILL
    assert list((tmp_path / "broken" / "checkpoints").glob("step-*.pt"))
    assert not (tmp_path / "broken" / "trunk.safetensors").exists()
    folder = pretrain(broken)
    assert len(folder.record["attempts"]) == 2
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "broken"))
    assert values(tmp_path / "whole") == values(tmp_path / "broken")


@pytest.mark.parametrize("optimiser", ["adam", "adamw"])
def test_optimisers_and_schedules_resume(archive: Path, tmp_path: Path, optimiser: str) -> None:
    changes = {
        "optimiser": {"name": optimiser, "lr": 0.01, "weight_decay": 0.01, "clip_norm": 1.0},
        "schedule": {"steps": 4, "warmup_steps": 2, "decay": "cosine"},
        "method": {"name": "simclr"},
    }
    whole = pretrain(small_config(archive, tmp_path / "whole", **changes))
    part = small_config(archive, tmp_path / "part", **changes)
    folder = pretrain(part)
    for name in ("step-00000004.pt", "step-00000004.sha256"):
        (folder.path / "checkpoints" / name).unlink()
    folder.update(status="stopped")
    pretrain(part)
    assert_same(weights(whole.path), weights(folder.path))
    rates = [line["lr"] for line in values(folder.path)]
    assert rates[0] < rates[2], "warm-up"


def test_resume_forgets_log_lines_after_the_checkpoint(archive: Path, tmp_path: Path) -> None:
    config = small_config(archive, tmp_path / "run")
    folder = pretrain(config)
    expected = values(folder.path)
    (folder.path / "checkpoints" / "step-00000006.pt").unlink()
    folder.update(status="running")
    with (folder.path / "metrics.jsonl").open("a") as handle:
        handle.write('{"step": 7, "loss"')
    pretrain(config)
    assert values(folder.path) == expected


def test_a_damaged_checkpoint_is_skipped(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(archive, tmp_path / "run")
    folder = pretrain(config)
    expected = weights(folder.path)
    newest = folder.path / "checkpoints" / "step-00000006.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    folder.update(status="running")
    pretrain(config)
    assert re.search(r"step-00000006\.pt.*checksum.*\n", capsys.readouterr().err)
    assert_same(expected, weights(folder.path))


def test_a_run_without_a_whole_checkpoint_loses_no_line(archive: Path, tmp_path: Path) -> None:
    config = small_config(archive, tmp_path / "run")
    folder = pretrain(config)
    folder.update(status="running")
    for path in (folder.path / "checkpoints").glob("step-*.pt"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"step-00000006\.pt"):
        pretrain(config)
    assert len(values(folder.path)) == 6


def test_a_finished_run_is_left_alone(archive: Path, tmp_path: Path) -> None:
    config = small_config(archive, tmp_path / "run")
    folder = pretrain(config)
    stamp = (folder.path / "trunk.safetensors").stat().st_mtime_ns
    assert pretrain(config).done
    assert (folder.path / "trunk.safetensors").stat().st_mtime_ns == stamp


def test_another_configuration_is_refused(archive: Path, tmp_path: Path) -> None:
    pretrain(small_config(archive, tmp_path / "run"))
    with pytest.raises(UserError, match=r"batch_size"):
        pretrain(small_config(archive, tmp_path / "run", batch_size=2))


def test_a_changed_archive_is_refused(tmp_path: Path) -> None:
    archive = small_archive(tmp_path / "a.h5")
    config = small_config(archive, tmp_path / "run")
    folder = pretrain(config)
    folder.update(status="running")
    archive.unlink()
    small_archive(archive, images=5)
    with pytest.raises(UserError, match=r"a\.h5"):
        pretrain(config)


def test_loss_that_is_not_finite_stops_the_run(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = task_module.make_views

    def poisoned(batch, config, number, device):  # type: ignore[no-untyped-def]
        views = make(batch, config, number, device)
        if number == 3:
            views.query[1] = math.nan
        return views

    monkeypatch.setattr(task_module, "make_views", poisoned)
    config = small_config(archive, tmp_path / "run")
    with pytest.raises(JobError, match=r"loss .*step 4 .*loss=nan.* alloy/0.* step 2"):
        pretrain(config)
    with pytest.raises(JobError, match=r"step 4 .*optimiser\.clip_norm"):
        pretrain(small_config(archive, tmp_path / "other", checkpoint={"every_steps": 6}))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "failed"
    assert "step 4" in record["error"]
    monkeypatch.undo()
    assert pretrain(config).done, "the run resumes from its last checkpoint"


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_stops_the_run_before_its_weights_are_kept(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip_norm: float
) -> None:
    """Its loss is finite: only the loss of the next step would show it."""
    build = task_module.build_method
    steps = 0

    def poisoned(*arguments: Any) -> Any:
        method = build(*arguments)

        def poison(gradient: torch.Tensor) -> torch.Tensor:
            nonlocal steps
            steps += 1
            return gradient * math.nan if steps == 4 else gradient

        next(weight for weight in method.parameters() if weight.requires_grad).register_hook(poison)
        return method

    monkeypatch.setattr(task_module, "build_method", poisoned)
    config = small_config(
        archive, tmp_path / "run", checkpoint={"every_steps": 2}, optimiser={"clip_norm": clip_norm}
    )
    with pytest.raises(JobError, match=r"gradient .*step 4 .*step 2"):
        pretrain(config)
    monkeypatch.undo()
    assert pretrain(config).done


def _export_on_a_full_disk(config: PretrainConfig, pipe: Connection) -> None:
    def full(path: Path, trunk: object) -> None:
        # Like a full disk: no file may grow beyond this size.
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        save(path, trunk)

    save = task_module.save_trunk
    task_module.save_trunk = full  # type: ignore[assignment]
    try:
        pretrain(config)
    except JobError as error:
        pipe.send(str(error))


def test_an_export_to_a_full_disk_names_the_file(archive: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    config = small_config(archive, tmp_path / "run", schedule={"steps": 1}, method={"name": "simclr"})
    process = context.Process(target=_export_on_a_full_disk, args=(config, theirs))
    process.start()
    theirs.close()
    text = ours.recv()
    process.join()
    assert text.startswith(f"{tmp_path / 'run' / 'trunk.safetensors'}: ")
    assert "\n" not in text
    assert not RunFolder.load(config.run).done
