"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

import torch

from pscl_hpc.config import ScheduleConfig


def lr_factor(step: int, config: ScheduleConfig) -> float:
    """Share of the base learning rate used by the update number ``step`` (0-based): linear warm-up, then constant or
    half a cosine that would reach zero just after the last step."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    if config.decay == "constant":
        return 1.0
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_lr(optimiser: torch.optim.Optimizer, step: int, config: ScheduleConfig) -> float:
    """Give every parameter group its learning rate for ``step``; returns the first group's."""
    factor = lr_factor(step, config)
    for group in optimiser.param_groups:
        group["lr"] = group["base_lr"] * factor
    return float(optimiser.param_groups[0]["lr"])
