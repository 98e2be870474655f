"""Oracles for methods with momentum encoders and queues: plain loops in double precision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from pscl_hpc.methods import Method, MethodOutput, Views
from pscl_hpc.seeding import Draws

from .test_pscl_simclr import make_views


def unit(row: Tensor) -> Tensor:
    row = row.detach().double()
    return row / row.norm()


def info_nce(
    q: Tensor,
    k: Tensor,
    entries: Sequence[Tensor],
    tau: float,
    targets: Sequence[Sequence[float]] | None = None,
    *,
    normalise: bool = False,
) -> list[float]:
    """Cross-entropy of each row with targets (1, y_1, ..) over its positive and the entries."""
    losses = []
    for i, (row, positive) in enumerate(zip(q, k, strict=True)):
        z = unit(row)
        logits = [float(z @ unit(positive)) / tau, *(float(z @ entry) / tau for entry in entries)]
        wanted = [1.0, *(targets[i] if targets is not None else [0.0] * len(entries))]
        top = math.log(sum(math.exp(x) for x in logits))
        loss = -sum(y * (x - top) for y, x in zip(wanted, logits, strict=True))
        losses.append(loss / sum(wanted) if normalise else loss)
    return losses


def views_of_step(step: int, batch: int, references: int = 0) -> Views:
    """Other images at every step."""
    views = make_views(batch, references)
    random = torch.Generator().manual_seed(step)
    noise = 0.1 * torch.randn(2, *views.query.shape, generator=random)
    return replace(
        views,
        query=views.query + noise[0],
        key=views.key + noise[1],
        production_batches=torch.randint(-1, 2, (batch,), generator=random),
    )


def draws_of_step(step: int) -> Draws:
    return Draws(3, step, tuple(range(16)))


class Average:
    """Moving average of the parameters of a module, in double precision."""

    def __init__(self, *modules: nn.Module) -> None:
        self.modules = modules
        self.values = [weight.detach().double() for weight in self._weights()]

    def follow(self, momentum: float) -> None:
        self.values = [
            momentum * old + (1 - momentum) * new.detach().double()
            for old, new in zip(self.values, self._weights(), strict=True)
        ]

    def assert_equals(self, *slow: nn.Module) -> None:
        got = [weight for module in slow for weight in module.parameters()]
        for a, b in zip(got, self.values, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)

    def _weights(self) -> list[Tensor]:
        return [weight for module in self.modules for weight in module.parameters()]


def train(method: Method, steps: int, images: int) -> list[MethodOutput]:
    """Losses of a training of some steps with Adam."""
    optimiser = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=3e-3)
    outputs = []
    for step in range(steps):
        outputs.append(method(views_of_step(step, images), draws_of_step(step)))
        optimiser.zero_grad()
        outputs[-1].loss.backward()
        optimiser.step()
        method.after_step(step / steps)
    return outputs
