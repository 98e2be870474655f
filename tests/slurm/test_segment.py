"""``segment`` as a job: killed while it trains, and the same command again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pscl_hpc.cli.main import main
from pscl_hpc.launch.records import job_records
from pscl_hpc.launch.schedulers import SCHEDULERS
from pscl_hpc.metallography.record import read_measurements
from pscl_hpc.runs import RunFolder

from .conftest import eventually, slurm

SMALL = (
    "model.name=unet", "model.widths=[4,8]", "crop=[32,32]", "batch_size=2", "semi_supervised.batch_size=2",
    "schedule.steps=100000", "schedule.warmup_steps=0", "checkpoint.every_steps=2", "runtime.threads=1",
    "runtime.device=cpu",
)  # fmt: skip


def test_a_killed_job_is_resumed_by_the_same_command(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The folder has a quote in its name."""
    (place / "sem").mkdir()
    random = np.random.default_rng(0)
    for number in range(3):
        mask = np.zeros((48, 56), np.uint8)
        mask[10 : 20 + 5 * number, 10:30] = 1
        image = np.where(mask == 1, 190, 80) + random.normal(0, 12, mask.shape)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(place / f"sem/Gefüge {number}.png")
    Image.fromarray(mask).save(place / "Gefüge 2.png")
    out = place / "out"
    command = [
        "segment", str(place / "sem"), "--mask", str(place / "Gefüge 2.png"), "--classes", "matrix,carbide",
        "--out", str(out), "--submit", "--cluster", "slurm", "--time", "10", *SMALL,
    ]  # fmt: skip
    assert main(command) == 0
    (first,) = job_records(out / "model")
    checkpoints = out / "model/checkpoints"
    # The newest may be incomplete when the job is killed; the one before it is not.
    eventually("two checkpoints", lambda: len(list(checkpoints.glob("step-*.sha256"))) > 1)
    assert main(command) == 2  # it is still working
    assert first.job in capfd.readouterr().err
    slurm("scancel", "--signal=KILL", "--full", first.job)
    slurm("scancel", first.job)
    eventually("the job ended", lambda: SCHEDULERS["slurm"].state(first).phase == "ended")
    # Shorter from here on: the rest of the configuration has to be the same.
    for path in (out / "segment.json", out / "model/config.yaml"):
        path.write_text(path.read_text().replace("100000", "200"))
    command = [text.replace("100000", "200") for text in command]
    for _ in range(2):  # the second time only measures again
        assert main(command) == 0
        job = job_records(out / "model")[-1]
        eventually("measured", lambda job=job: SCHEDULERS["slurm"].state(job).phase == "ended")  # type: ignore[misc]
        run = RunFolder.load(out / "model")
        assert run.done
        assert len(read_measurements(out / "measurements").images) == 3
        assert (out / "report.html").is_file()
    start, resumed = (attempt["first_step"] for attempt in run.attempts)
    assert start == 0
    assert 0 < resumed <= 200
