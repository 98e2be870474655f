"""MoCo over several steps against a simulation that keeps a list of keys."""

from __future__ import annotations

from collections import deque

import pytest
import torch
from torch import Tensor

from pscl_hpc.methods import Setting
from pscl_hpc.methods.moco import Moco, MocoConfig
from pscl_hpc.models.unet import UNet, UNetConfig

from .queue_oracle import Average, draws_of_step, info_nce, train, unit, views_of_step


def make_method(**changes: object) -> Moco:
    torch.manual_seed(0)
    config = MocoConfig.model_validate({"projection": 8, "hidden": 8, "queue_steps": 2, **changes})
    return Moco(UNet(UNetConfig(widths=(4, 8, 8, 16))), config, Setting(images_per_step=3))


def test_steps_equal_the_simulation() -> None:
    method = make_method(momentum={"start": 0.9, "schedule": "cosine"})
    optimiser = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.5)
    average = Average(method.trunk, method.global_head)
    entries: deque[Tensor] = deque(maxlen=6)
    for step in range(5):
        views = views_of_step(step, 3)
        with torch.no_grad():
            q = method.global_head(method.trunk.encode(views.query)[-1])
            k = method.momentum_head.module(method.momentum_trunk.module.encode(views.key)[-1])
        output = method(views, draws_of_step(step))
        wanted = sum(info_nce(q, k, list(entries), 0.2)) / 3
        assert float(output.loss.detach()) == pytest.approx(wanted, rel=1e-5, abs=1e-6)
        optimiser.zero_grad()
        output.loss.backward()
        optimiser.step()
        progress = (step + 1) / 5
        method.after_step(progress)
        average.follow(1 - 0.1 * (torch.cos(torch.tensor(torch.pi * progress).double()).item() + 1) / 2)
        average.assert_equals(method.momentum_trunk, method.momentum_head)
        entries.extend(unit(row) for row in k)
        stored = method.queue.keys[:, 0].double()
        order = [(int(method.queue.cursor) + i) % 6 for i in range(6)][6 - len(entries) :]
        torch.testing.assert_close(stored[order], torch.stack(list(entries)), rtol=1e-5, atol=1e-6)
    assert wanted > 0.5, "the queue was not empty"


def test_training_lowers_the_loss() -> None:
    losses = [float(output.loss.detach()) for output in train(make_method(queue_steps=4), 60, 3)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[5:15])
