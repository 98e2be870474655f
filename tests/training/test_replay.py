"""A step with a value that is not finite is saved, and computed again by ``pscl-hpc replay``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from pscl_hpc.cli.main import main
from pscl_hpc.errors import JobError, UserError
from pscl_hpc.methods import METHODS, Embedding, MethodOutput, Views
from pscl_hpc.methods.simclr import Simclr
from pscl_hpc.pretraining import PretrainTask, pretrain
from pscl_hpc.runs import CheckpointStore, RunFolder
from pscl_hpc.seeding import Draws
from pscl_hpc.training.replay import FAILURE, replay
from tests.helpers import small_archive, small_config

SIMCLR = {"method": {"name": "simclr"}, "batch_size": 4}


def broken(tmp_path: Path, **changes: Any) -> Path:
    """A run that ended with a value that is not finite."""
    archive = tmp_path / "a.h5"
    if not archive.exists():
        small_archive(archive)
    config = small_config(archive, tmp_path / "run", **{**SIMCLR, **changes})
    with pytest.raises(JobError, match=r"not finite at step .*pscl-hpc replay"):
        pretrain(config)
    return tmp_path / "run"


def files(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_layer_that_overflows_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = broken(tmp_path, optimiser={"lr": 1e30}, model={"widths": [4, 8, 8, 16], "norm": "group"})
    before = files(run)
    assert main(["replay", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert files(run) == before
    assert found["step"] == 2
    assert found["same_images"] is True
    assert found["layer"].startswith("trunk.encoder.0.")
    assert found["weights"] == found["inputs"] == []
    assert found["terms"]["loss"] in ("nan", "inf")
    assert f"output of {found['layer']}" in found["verdict"]
    assert set(found["images"]) <= {f"alloy/{i}" for i in range(5)} | {"other/0"}
    assert main(["replay", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("step 2 on cpu")
    assert lines[-1] == found["verdict"]


class Steep(Simclr):
    """A finite loss whose gradient is not, in the second step."""

    at = "gradient"
    calls = 0

    def embed(self, views: Views, draws: Draws, measure: bool) -> Embedding:
        found = super().embed(views, draws, measure)
        return Embedding({**found.images, "number": torch.full((len(views.query),), draws.number)})

    def loss(self, embedding: Embedding, measure: bool) -> MethodOutput:
        output = super().loss(embedding, measure)
        if int(embedding.images["number"][0]) == 1:
            zero = (0 * embedding.images["q"]).sum()
            odd: Tensor = zero.sqrt() if self.at == "gradient" else zero + torch.inf
            output.loss = output.loss + odd
            output.terms["odd"] = odd.detach()
        return output


@pytest.mark.parametrize("at", ["gradient", "loss"])
@pytest.mark.parametrize("exact", [False, True])
def test_a_loss_or_a_gradient_is_named(
    tmp_path: Path, at: str, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(METHODS, "implementation", lambda config: Steep)
    monkeypatch.setattr(Steep, "at", at)
    parts = {"accumulate": "exact", "part_size": 2} if exact else {"accumulate": 2}
    run = (
        broken(tmp_path, model={"widths": [4, 8, 8, 16], "norm": "group"}, **parts)
        if exact
        else broken(tmp_path)
    )
    found = replay(RunFolder.load(run), PretrainTask)
    assert found.step == 2
    assert found.layer == ""
    assert found.terms["odd"] == (0 if at == "gradient" else float("inf"))
    if at == "gradient":
        assert found.gradient.startswith("global_head")
        assert "gradient, first at the output of global_head" in found.verdict
        assert "trunk.encoder.0.0.weight" in found.parameters
    else:
        assert found.verdict == "all layers are finite, but not the loss: loss, odd"


def test_weights_and_images_that_were_not_finite_are_named(tmp_path: Path) -> None:
    run = broken(tmp_path, optimiser={"lr": 1e30})
    folder = RunFolder.load(run)
    store = next((run / FAILURE).glob("step-*.pt"))
    saved = torch.load(store, weights_only=True)
    saved["task"]["method"]["trunk.encoder.0.0.weight"][0] = float("nan")
    saved["batches"][0][0][0] = 0.5
    CheckpointStore(run / FAILURE, keep=1).save(saved.pop("step"), saved)
    found = replay(folder, PretrainTask)
    assert found.weights == ["trunk.encoder.0.0.weight"]
    assert found.verdict == "the weights were not finite before the step: trunk.encoder.0.0.weight"
    assert found.same_images is False
    found.weights, found.inputs = [], ["alloy/1"]
    assert found.verdict == "the images are not finite: alloy/1"


def test_a_run_that_did_not_fail_and_a_changed_archive_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = small_archive(tmp_path / "a.h5")
    done = pretrain(small_config(archive, tmp_path / "done", schedule={"steps": 1}, **SIMCLR))
    assert main(["replay", str(done.path)]) == 2
    assert "no failed step" in capsys.readouterr().err
    run = broken(tmp_path, optimiser={"lr": 1e30})
    assert main(["replay", str(run), "--device", "tpu"]) == 2
    assert "--device tpu" in capsys.readouterr().err
    small_archive(tmp_path / "b.h5", images=7)
    shutil.copy(tmp_path / "b.h5", archive)
    with pytest.raises(UserError, match="has changed since"):
        replay(RunFolder.load(run), PretrainTask)


def test_random_layers_draw_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Thinned(Simclr):
        """Draws from the global generator; the drawn number is in the loss."""

        seen: ClassVar[list[float]] = []

        def loss(self, embedding: Embedding, measure: bool) -> MethodOutput:
            output = super().loss(embedding, measure)
            self.seen.append(float(torch.rand(())))
            output.loss = output.loss * (1 if len(self.seen) < 3 else torch.inf)
            return output

    monkeypatch.setattr(METHODS, "implementation", lambda config: Thinned)
    run = broken(tmp_path)
    drawn = Thinned.seen[-1]
    replay(RunFolder.load(run), PretrainTask)
    assert Thinned.seen[-1] == drawn


def test_a_folder_that_cannot_be_written_keeps_the_error(tmp_path: Path) -> None:
    archive = small_archive(tmp_path / "a.h5")
    run = tmp_path / "run"
    config = small_config(archive, run, optimiser={"lr": 1e30}, **SIMCLR)
    RunFolder.reserve(config)
    (run / FAILURE).write_text("in the way")
    with pytest.raises(JobError, match="not finite at step") as caught:
        pretrain(config)
    assert "replay" not in str(caught.value)
