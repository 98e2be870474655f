"""A new method is one module with a class and its settings. This one is defined here, without a change in pscl_hpc."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch
from safetensors.torch import load_file

from pscl_hpc.cli.main import main
from pscl_hpc.config import Positive, load_config, to_yaml
from pscl_hpc.methods import (
    METHODS,
    Embedding,
    Method,
    MethodConfig,
    MethodOutput,
    Setting,
    Views,
    display_name,
)
from pscl_hpc.models import TRUNK_FILE, Trunk
from pscl_hpc.pretraining import pretrain
from pscl_hpc.pretraining.config import PretrainConfig
from pscl_hpc.seeding import Draws
from pscl_hpc.training import StopRequested, clear_stop, request_stop
from pscl_hpc.training.reduce import mean_over_ranks
from tests.helpers import small_archive, small_config


class InvarianceConfig(MethodConfig):
    """Equal pooled features of both views, with a minimum variance."""

    name: Literal["invariance"] = "invariance"
    display_name: ClassVar[str] = "Invariance"
    floor: Positive = 1.0
    """Minimum standard deviation of the features over the batch."""


class Invariance(Method):
    """Squared distance of the pooled bottlenecks of both views, plus a hinge on their deviation."""

    config: InvarianceConfig
    stop_at: ClassVar[float] = 2.0
    """Progress at which a stop is requested."""

    def __init__(self, trunk: Trunk, config: InvarianceConfig, setting: Setting) -> None:
        super().__init__(trunk, config, setting)

    def embed(self, views: Views, draws: Draws, measure: bool) -> Embedding:
        q, k = (self.trunk.encode(images)[-1].mean(dim=(2, 3)) for images in (views.query, views.key))
        return Embedding({"q": q, "k": k})

    def loss(self, embedding: Embedding, measure: bool) -> MethodOutput:
        q, k = embedding.images["q"], embedding.images["k"]
        hinge = (self.config.floor - q.std(dim=0)).clamp_min(0).mean()
        loss = mean_over_ranks(
            (q - k).square().sum() + len(q) * hinge, torch.tensor(float(len(q))), self.process_group
        )
        return MethodOutput(loss, {"image/hinge": hinge.detach()})

    def after_step(self, progress: float) -> None:
        if progress >= self.stop_at:
            request_stop("test")


@pytest.fixture
def registered() -> Iterator[None]:
    METHODS.register(InvarianceConfig)(Invariance)
    yield
    METHODS.unregister("invariance")
    clear_stop()


@pytest.mark.usefixtures("registered")
def test_it_trains_and_resumes_with_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = small_archive(tmp_path / "a.h5")
    method = {"name": "invariance", "floor": 0.5}
    whole = pretrain(small_config(archive, tmp_path / "whole", method=method))
    config = small_config(archive, tmp_path / "parts", method=method)
    monkeypatch.setattr(Invariance, "stop_at", 0.5)
    with pytest.raises(StopRequested):
        pretrain(config)
    clear_stop()
    monkeypatch.setattr(Invariance, "stop_at", 2.0)
    parts = pretrain(config)
    assert len(parts.attempts) == 2
    expected, found = load_file(whole.path / TRUNK_FILE), load_file(parts.path / TRUNK_FILE)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert [line["loss"] for line in parts.metrics()] == [line["loss"] for line in whole.metrics()]
    assert "image/hinge" in whole.metrics()[0]


@pytest.mark.usefixtures("registered")
def test_help_configuration_and_report_show_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--help"]) == 0
    assert "invariance" in capsys.readouterr().out
    assert main(["config", "pretrain", "--method", "invariance"]) == 0
    shown = capsys.readouterr().out
    assert "floor: 1.0" in shown
    assert "Minimum standard deviation of the features" in shown
    assert display_name("invariance") == "Invariance"
    file = tmp_path / "c.yaml"
    file.write_text(to_yaml(small_config(tmp_path / "a.h5", tmp_path / "run", method={"name": "invariance"})))
    config = load_config(file, ["method.floor=2"])
    assert isinstance(config, PretrainConfig)
    assert config.method == InvarianceConfig(floor=2)
    assert main(["config", "check", str(file), "method.flor=2"]) == 2
    assert "'floor'" in capsys.readouterr().err


def test_without_registration_it_is_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "pretrain", "--method", "invariance"]) == 2
    assert "--method" in capsys.readouterr().err
