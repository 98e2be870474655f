"""Optimisers, parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pscl_hpc.config import OptimiserConfig, ScheduleConfig

_OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


def parameter_groups(
    module: nn.Module,
    lr: float,
    weight_decay: float = 0.0,
    *,
    name: str = "",
    without: nn.Module | None = None,
) -> list[dict[str, Any]]:
    """Trainable parameters of ``module`` as two groups: weights with decay, biases and normalisation without.

    The learning rate of a group with a ``name`` is logged as ``<name>/lr``. Parameters of ``without`` are left out.
    """
    left_out = set() if without is None else set(without.parameters())
    trainable = [p for p in module.parameters() if p.requires_grad and p not in left_out]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [{**group, "lr": lr, "name": name} for group in groups if group["params"]]


def build_optimiser(groups: list[dict[str, Any]], config: OptimiserConfig) -> torch.optim.Optimizer:
    """The configured optimiser over ``groups`` (see :func:`parameter_groups`).

    Each group keeps its own rate as ``base_lr``, from which :func:`set_lr` computes ``lr``.
    """
    groups = [{**group, "base_lr": group.get("lr", config.lr)} for group in groups]
    return _OPTIMISERS[config.name](groups, lr=config.lr, weight_decay=config.weight_decay)


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """2-norm of all gradients together: a scalar on their device, not finite when one of them is not."""
    return nn.utils.get_total_norm([weight.grad for weight in parameters if weight.grad is not None])


def scaled_lr(config: OptimiserConfig, batch_size: int) -> float:
    """The learning rate for this batch over all ranks (linear: Goyal et al. 2017; sqrt: Krizhevsky 2014)."""
    ratio = batch_size / config.lr_base_batch
    return config.lr * {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[config.lr_scaling]


def lr_factor(step: int, config: ScheduleConfig) -> float:
    """Share of the base learning rate for the update number ``step`` (0-based): linear warm-up, then constant or half
    a cosine that would reach zero just after the last step."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    if config.decay == "constant":
        return 1.0
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_lr(optimiser: torch.optim.Optimizer, step: int, config: ScheduleConfig) -> dict[str, float]:
    """Give every parameter group its learning rate for ``step``.

    Returns:
        The rates for the log: the first group's as ``lr``, a named group's as ``<name>/lr``.
    """
    factor = lr_factor(step, config)
    rates = {}
    for group in optimiser.param_groups:
        group["lr"] = group["base_lr"] * factor
        rates[f"{group['name']}/lr" if group.get("name") else "lr"] = float(group["lr"])
    return {**rates, "lr": float(optimiser.param_groups[0]["lr"])}
