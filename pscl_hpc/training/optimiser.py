"""Optimisers: Adam and AdamW of torch, and LARS for large batches (You et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

from pscl_hpc.config import OptimiserConfig


class Lars(torch.optim.Optimizer):
    """SGD with momentum whose step for each tensor is scaled by ``trust * |w| / |g + decay w|``.

    The ratio is that of SimCLR's released optimiser; equation 6 of You et al. has the sum ``|g| + decay |w|`` below the
    line, which is no less. The rate stands outside of the momentum, as in torch's SGD. Tensors of one dimension
    (biases, normalisation) take the plain step, as in SimCLR.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}
        )

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update; returns what ``closure`` returns, when given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                update = weight.grad
                if weight.ndim > 1:
                    update = update + group["weight_decay"] * weight
                    weight_norm, update_norm = weight.norm(), update.norm()
                    usable = (weight_norm > 0) & (update_norm > 0)
                    ratio = torch.where(
                        usable, group["trust"] * weight_norm / update_norm.clamp_min(1e-30), 1.0
                    )
                    update = update * ratio
                state = self.state[weight]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                buffer = state["momentum_buffer"].mul_(group["momentum"]).add_(update)
                weight.add_(buffer, alpha=-group["lr"])
        return loss


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """2-norm of all gradients together: a scalar on their device, not finite where one of them is not."""
    return nn.utils.get_total_norm([weight.grad for weight in parameters if weight.grad is not None])


def parameter_groups(module: nn.Module, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Trainable parameters of ``module`` as two groups: weights with decay, biases and normalisation without."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "lr": lr, "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def scaled_lr(config: OptimiserConfig, batch_size: int) -> float:
    """The learning rate for this batch over all ranks (linear: Goyal et al. 2017; sqrt: Krizhevsky 2014)."""
    ratio = batch_size / config.lr_base_batch
    return config.lr * {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[config.lr_scaling]


def build_optimiser(groups: list[dict[str, Any]], config: OptimiserConfig) -> torch.optim.Optimizer:
    """The configured optimiser over ``groups`` (see :func:`parameter_groups`).

    Each group keeps its own rate as ``base_lr``, from which the schedule computes ``lr``.
    """
    groups = [{**group, "base_lr": group.get("lr", config.lr)} for group in groups]
    if config.name == "lars":
        return Lars(groups, config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    optimiser = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return optimiser(groups, lr=config.lr, weight_decay=config.weight_decay)
