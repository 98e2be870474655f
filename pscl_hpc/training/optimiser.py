"""Optimisers: Adam and AdamW of torch, and LARS for large batches (You et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pscl_hpc.config import OptimiserConfig


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
    optimiser = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return optimiser(groups, lr=config.lr, weight_decay=config.weight_decay)
