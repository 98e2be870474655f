# mypy: disable-error-code="no-untyped-call"
"""Time, memory and error of a call."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.forms import peak_bytes
from bench.gpu.run import Setting, attempt

FORWARD, BOTH = "forward", "forward and backward"

QUANTILES = {"q20_ms": 0.2, "median_ms": 0.5, "q80_ms": 0.8}

SLOW = 1.0
"""Seconds from which on a call is timed once."""

Loss = Callable[..., Tensor]


def measure(setting: Setting, call: Callable[[], object], milliseconds: int = 200) -> dict[str, Any]:
    """Milliseconds of a call (quantiles 0.2, 0.5 and 0.8), and its peak memory in bytes beyond what was held before.

    On a GPU `triton.testing.do_bench` repeats the call for about `milliseconds`, with the second-level cache cleared
    before each repetition. Compilation is not included. A call that fails gives {"failed": reason}.
    """
    return attempt(lambda: _on_cpu(call) if setting.dry else _on_gpu(call, milliseconds))


def _on_cpu(call: Callable[[], object]) -> dict[str, Any]:
    begun = time.perf_counter()
    call()
    times = dict.fromkeys(QUANTILES, 1e3 * (time.perf_counter() - begun))
    return {**times, "peak_bytes": peak_bytes(call), "held_bytes": 0}


def _on_gpu(call: Callable[[], object], milliseconds: int) -> dict[str, Any]:
    from triton.testing import do_bench

    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    begun = time.perf_counter()
    call()
    torch.cuda.synchronize()
    seconds = time.perf_counter() - begun
    peak = torch.cuda.max_memory_allocated() - held
    times = [1e3 * seconds] * len(QUANTILES)
    if seconds < SLOW:
        times = do_bench(call, rep=milliseconds, quantiles=list(QUANTILES.values()))
    return {**dict(zip(QUANTILES, times, strict=True)), "peak_bytes": peak, "held_bytes": held}


def measure_loss(
    setting: Setting, call: Callable[[], Tensor], inputs: tuple[Tensor, ...], *, backward: bool = True
) -> dict[str, Any]:
    """`measure` of a loss and, with `backward`, of the loss and the gradients of `inputs`."""

    def forward() -> Tensor:
        with torch.no_grad():
            return call()

    found: dict[str, Any] = {FORWARD: measure(setting, forward)}
    if backward:
        found[BOTH] = measure(setting, lambda: torch.autograd.grad(call(), inputs))
    return found


def errors(loss: Loss, exact: Loss, inputs: tuple[Tensor, ...], *, gradient: bool = True) -> dict[str, float]:
    """Relative errors of a loss and of the gradient of its first input, against `exact` on float64 inputs."""
    value, slope = _run(loss, inputs, inputs[0].dtype, gradient)
    true, true_slope = _run(exact, inputs, torch.float64, gradient)
    found = {"loss_error": float((value - true).abs() / true.abs())}
    if gradient:
        found["gradient_error"] = float((slope - true_slope).norm() / true_slope.norm())
    return found


def _run(loss: Loss, inputs: tuple[Tensor, ...], dtype: torch.dtype, gradient: bool) -> tuple[Tensor, Tensor]:
    made = [x.detach().to(dtype) for x in inputs]
    made[0].requires_grad_(gradient)
    value = loss(*made)
    slope = torch.autograd.grad(value, made[0])[0] if gradient else value
    return value.detach().double(), slope.detach().double()
