"""Heads that are trained by gradient descent: linear (multinomial logistic regression) and a multilayer perceptron."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pscl_hpc.classifiers.heads.base import HEADS, Head, HeadConfig, Samples
from pscl_hpc.config import Count, NonNegative, Positive
from pscl_hpc.seeding import derive_seed, torch_generator

_LOG_EVERY = 100
_BATCH = 1 << 16
"""Pixels that are classified at once."""


class _NetworkConfig(HeadConfig):
    steps: Count = 500
    """Optimiser steps (Adam with decoupled weight decay, half a cosine)."""
    batch_size: Count = 1024
    """Pixels per step."""
    lr: Positive = 3e-3
    """Learning rate at the first step."""
    weight_decay: NonNegative = 1e-3
    """Decoupled weight decay."""


class LinearConfig(_NetworkConfig):
    """Logistic regression."""

    name: Literal["linear"] = "linear"
    display_name: ClassVar[str] = "linear"


class MLPConfig(_NetworkConfig):
    """A multilayer perceptron."""

    name: Literal["mlp"] = "mlp"
    display_name: ClassVar[str] = "MLP"
    hidden: tuple[Count, ...] = (64,)
    """Units of the hidden layers."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3
    """Share of the hidden units that are left out at random in training."""


@HEADS.register(LinearConfig)
class Network(Head):
    """The heads of this module."""

    config: LinearConfig | MLPConfig

    def __init__(self, config: LinearConfig | MLPConfig, features: int, classes: int) -> None:
        self.config = config
        widths = [features, *(config.hidden if isinstance(config, MLPConfig) else ())]
        layers: list[nn.Module] = []
        for inner, outer in itertools.pairwise(widths):
            layers += [nn.Linear(inner, outer), nn.ReLU()]
            if isinstance(config, MLPConfig) and config.dropout:
                layers.append(nn.Dropout(config.dropout))
        self.net = nn.Sequential(*layers, nn.Linear(widths[-1], classes)).eval()

    def fit(self, samples: Samples, seed: int) -> Iterator[tuple[int, dict[str, Any]]]:
        config, count = self.config, len(samples.labels)
        optimiser = torch.optim.AdamW(self.net.parameters(), config.lr, weight_decay=config.weight_decay)
        draws = torch_generator(seed, "head batches")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "head"))
            for layer in self.net:
                if isinstance(layer, nn.Linear):
                    layer.reset_parameters()
            self.net.train()
            for step in range(1, config.steps + 1):
                for group in optimiser.param_groups:
                    group["lr"] = config.lr * (1 + math.cos(math.pi * (step - 1) / config.steps)) / 2
                chosen = torch.randint(count, (min(config.batch_size, count),), generator=draws)
                logits = self.net(samples.features[chosen])
                losses = F.cross_entropy(logits, samples.labels[chosen], reduction="none")
                loss = (losses * samples.weights[chosen]).mean()
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                if step % _LOG_EVERY == 0 or step in (1, config.steps):
                    yield step, {"loss": float(loss.detach())}
        self.net.eval()

    @torch.inference_mode()
    def probabilities(self, features: Tensor) -> Tensor:
        return torch.cat([self.net(part).softmax(dim=1) for part in torch.split(features, _BATCH)])

    def state(self) -> dict[str, Tensor]:
        return {name: value.detach().contiguous() for name, value in self.net.state_dict().items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.net.load_state_dict(state)


HEADS.register(MLPConfig)(Network)
