"""All methods with a momentum encoder: gradients, checkpoints, accumulation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pscl_hpc.methods import Method
from pscl_hpc.models import load_trunk
from pscl_hpc.pretraining import pretrain
from tests.helpers import small_archive, small_config

from . import test_byol, test_densecl, test_moco, test_pscl_moco
from .queue_oracle import draws_of_step, views_of_step

MAKE: dict[str, Callable[[], Method]] = {
    "moco": test_moco.make_method,
    "byol": test_byol.make_method,
    "densecl": test_densecl.make_method,
    "pscl-moco": test_pscl_moco.make_method,
}
SECTIONS = {
    "moco": {"queue_steps": 2},
    "byol": {"hidden": 12, "projection": 8},
    "densecl": {"queue_steps": 2},
    "pscl-moco": {"queue_steps": 2, "templates_per_class": 2, "reference": {"ids": ["alloy/0"]}},
}
names = pytest.mark.parametrize("name", list(MAKE))


def steps(method: Method, optimiser: torch.optim.Optimizer, first: int, last: int) -> list[float]:
    losses = []
    references = 1 if isinstance(method, test_pscl_moco.PsclMoco) else 0
    for step in range(first, last):
        loss = method(views_of_step(step, 3, references), draws_of_step(step)).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        method.after_step((step + 1) / 8)
        losses.append(float(loss.detach()))
    return losses


def build(name: str) -> tuple[Method, torch.optim.Optimizer]:
    method = MAKE[name]()
    return method, torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=1e-3)


@names
def test_gradient_only_where_it_should_be(name: str) -> None:
    method, optimiser = build(name)
    losses = steps(method, optimiser, 0, 3)
    assert all(loss == loss for loss in losses)
    assert losses[0] == 0.0 or name == "byol", "the queue is empty"
    for key, weight in method.named_parameters():
        slow = key.startswith("momentum_")
        idle = key.startswith("trunk.decoder") and name != "pscl-moco"
        assert weight.requires_grad != slow, key
        if slow or idle:
            assert weight.grad is None, key
        else:
            assert weight.grad is not None, key
            assert bool(weight.grad.isfinite().all()), key
            # A bias before batch normalisation has no effect.
            assert weight.ndim < 2 or bool(weight.grad.abs().sum() > 0), key


@names
def test_state_restores_to_the_last_bit(name: str) -> None:
    whole, whole_optimiser = build(name)
    expected = steps(whole, whole_optimiser, 0, 6)[3:]
    first, optimiser = build(name)
    steps(first, optimiser, 0, 3)
    second, fresh = build(name)
    second.load_state_dict(first.state_dict())
    fresh.load_state_dict(optimiser.state_dict())
    assert steps(second, fresh, 3, 6) == expected
    for key, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


@names
def test_accumulated_passes_use_the_same_queue(name: str) -> None:
    method, optimiser = build(name)
    steps(method, optimiser, 0, 2)
    references = 1 if name == "pscl-moco" else 0
    views = views_of_step(2, 3, references)
    with torch.no_grad():
        losses = [float(method(views, draws_of_step(2)).loss) for _ in range(3)]
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize("name", ["moco", "densecl", "pscl-moco"])
def test_an_image_alone(name: str) -> None:
    method = MAKE[name]()
    references = 1 if name == "pscl-moco" else 0
    for step in range(3):
        output = method(views_of_step(step, 1, references), draws_of_step(step), True)
        assert bool(output.loss.isfinite())
        output.loss.backward()
        method.after_step(0.0)
    assert float(output.loss.detach()) > 0


@names
def test_pretraining_resumes_from_a_checkpoint(name: str, tmp_path: Path) -> None:
    archive = small_archive(tmp_path / "small.h5")
    method = {"name": name, **SECTIONS[name]}
    config = small_config(archive, tmp_path / "run", batch_size=2, schedule={"steps": 4}, method=method)
    folder = pretrain(config)
    expected = load_trunk(folder.path).state_dict()
    (folder.path / "checkpoints" / "step-00000004.pt").unlink()
    folder.update(status="running")
    pretrain(config)
    for key, value in load_trunk(folder.path).state_dict().items():
        assert torch.equal(value, expected[key]), key
