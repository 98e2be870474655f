"""BYOL's loss against a loop over images, and its target network against a simulation."""

from __future__ import annotations

import pytest
import torch

from pscl_hpc.methods import Setting
from pscl_hpc.methods.byol import Byol, ByolConfig
from pscl_hpc.models.unet import UNet, UNetConfig

from .queue_oracle import Average, draws_of_step, train, unit, views_of_step


def make_method(**changes: object) -> Byol:
    torch.manual_seed(0)
    config = ByolConfig.model_validate({"projection": 8, "hidden": 12, **changes})
    return Byol(UNet(UNetConfig(widths=(4, 8, 8, 16))), config, Setting())


def test_steps_equal_the_simulation() -> None:
    method = make_method(momentum={"start": 0.8, "schedule": "constant"})
    optimiser = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    average = Average(method.trunk, method.projector)
    for step in range(3):
        views = views_of_step(step, 4)
        predicted, target = [], []
        with torch.no_grad():
            for images in (views.query, views.key):
                pooled = method.trunk.encode(images)[-1].mean(dim=(2, 3))
                predicted.append(method.predictor(method.projector(pooled)))
                slow = method.momentum_trunk.module.encode(images)[-1].mean(dim=(2, 3))
                target.append(method.momentum_projector.module(slow))
        wanted = 0.0
        for image in range(4):
            for here, there in ((0, 1), (1, 0)):
                wanted += 2 - 2 * float(unit(predicted[here][image]) @ unit(target[there][image]))
        loss = method(views, draws_of_step(step)).loss
        assert float(loss.detach()) == pytest.approx(wanted / 4, rel=1e-5)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        method.after_step((step + 1) / 3)
        average.follow(0.8)
        average.assert_equals(method.momentum_trunk, method.momentum_projector)


def test_target_is_constant_at_the_end_of_a_cosine() -> None:
    method = make_method()
    before = [weight.clone() for weight in method.momentum_trunk.parameters()]
    with torch.no_grad():
        for weight in method.trunk.parameters():
            weight.add_(1.0)
    method.after_step(1.0)
    for a, b in zip(before, method.momentum_trunk.parameters(), strict=True):
        assert torch.equal(a, b)
    method.after_step(0.0)
    assert all(not torch.equal(a, b) for a, b in zip(before, method.momentum_trunk.parameters(), strict=True))


def test_training_lowers_the_loss() -> None:
    losses = [float(output.loss.detach()) for output in train(make_method(), 30, 4)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
