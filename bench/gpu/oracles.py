"""The losses in float64 as their definitions read, and how far a result is from them."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.gpu.measure import attempt


def loss(
    q: Tensor, k: Tensor, groups: Tensor | None, temperature: float, *, self_pair: bool = False
) -> Tensor:
    """Group-masked NT-Xent of float64 rows; with `self_pair`, each row's own product is one more negative."""
    n = q.shape[0]
    z = torch.nn.functional.normalize(torch.cat([q, k]), dim=1)
    logits = z @ z.T / temperature
    group = torch.arange(n, device=q.device) if groups is None else groups
    negative = group.repeat(2)[:, None] != group.repeat(2)[None, :]
    if self_pair:
        negative = negative | torch.eye(2 * n, dtype=torch.bool, device=q.device)
    positive = torch.cat([logits.diagonal(n), logits.diagonal(-n)])
    masked = torch.cat([positive[:, None], logits.masked_fill(~negative, -math.inf)], dim=1)
    return (masked.logsumexp(1) - positive).mean()


def queue(q: Tensor, k: Tensor, entries: Tensor, temperature: float) -> Tensor:
    """InfoNCE of float64 rows against their keys and a queue used as it is."""
    z, key = (torch.nn.functional.normalize(x, dim=1) for x in (q, k))
    positive = (z * key).sum(1, keepdim=True) / temperature
    logits = torch.cat([positive, z @ entries.T / temperature], dim=1)
    return (logits.logsumexp(1) - positive.squeeze(1)).mean()


def errors(
    call: Callable[..., Tensor],
    truth: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    *,
    gradients: bool = True,
) -> dict[str, float]:
    """Relative errors of loss and gradient of the first input, for `call(*inputs)` against `truth` in float64."""
    exact, exact_gradient = _run(truth, inputs, torch.float64, gradients)
    value, gradient = _run(call, inputs, inputs[0].dtype, gradients)
    found = {"loss_error": float((value - exact).abs() / exact.abs())}
    if gradients:
        found["gradient_error"] = float((gradient - exact_gradient).norm() / exact_gradient.norm())
    return found


def errors_if_known(
    call: Callable[..., Tensor], truth: Callable[..., Tensor], inputs: tuple[Tensor, ...]
) -> dict[str, Any]:
    """As `errors`; {"errors": {"failed": why}} where they cannot be found, so that times stand without them."""
    found = attempt(lambda: errors(call, truth, inputs))
    return {"errors": found} if "failed" in found else found


def _run(
    of: Callable[..., Tensor], inputs: tuple[Tensor, ...], dtype: torch.dtype, gradients: bool
) -> tuple[Tensor, Tensor]:
    made = [x.detach().to(dtype) for x in inputs]
    made[0].requires_grad_(gradients)
    value = of(*made)
    gradient = torch.autograd.grad(value, made[0])[0] if gradients else value
    return value.detach().double(), gradient.detach().double()
