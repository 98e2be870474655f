"""Times of a loss: forward alone, and forward and backward."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.gpu.measure import measure
from bench.gpu.setting import Setting

FORWARD, BOTH = "forward", "forward and backward"


def of_loss(
    setting: Setting, call: Callable[[], Tensor], inputs: tuple[Tensor, ...], *, backward: bool = True
) -> dict[str, Any]:
    """What `measure` finds of `call()`, and of it with the gradients of `inputs`."""

    def forward() -> Tensor:
        with torch.no_grad():
            return call()

    def both() -> object:
        return torch.autograd.grad(call(), inputs)

    found: dict[str, Any] = {FORWARD: measure(setting, forward)}
    if backward:
        found[BOTH] = measure(setting, both)
    return found


def share(floor_ms: float | None, measured: dict[str, Any]) -> dict[str, float]:
    """The floor and its share of the median, where both are known."""
    if floor_ms is None or "median_ms" not in measured:
        return {}
    return {"floor_ms": floor_ms, "share_of_floor": floor_ms / measured["median_ms"]}
