# mypy: disable-error-code="no-untyped-call"
"""The queue loss on a GPU: hard and soft labels, empty slots, rows that take no part."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.gpu.correctness.cases import DEVICE, DTYPES, assert_close, gpu_only, rows, sized, truth_backend
from pscl_kernels import queue_info_nce
from pscl_kernels.backends import triton_maximum_width

SHAPES = [
    (1, 1, 16, 0.5),
    (13, 40, 20, 0.1),
    (33, 40, 16, 0.01),
    (1000, 504, 64, 0.07),
    (777, 3000, 100, 0.2),
    (500, 2048, 128, 0.01),
    (300, 1000, 512, 0.2),
    (20_000, 16_384, 64, 0.1),
]

LABELS = ("plain", "empty slots", "soft", "soft, normalised")


def entries(count: int, width: int, dtype: torch.dtype) -> Tensor:
    torch.manual_seed(count)
    return torch.nn.functional.normalize(torch.randn(count, width, device=DEVICE), dim=1).to(dtype)


def options(kind: str, n: int, count: int) -> dict[str, Any]:
    """The arguments that make the labels."""
    if kind == "plain":
        return {}
    row, entry = torch.arange(n, device=DEVICE), torch.arange(count, device=DEVICE)
    found: dict[str, Any] = {"groups": row % 5 - 1, "queue_groups": entry % 6 - 1}
    if kind == "empty slots":
        return found
    share = torch.rand(2, count, device=DEVICE, dtype=torch.float64) / count
    return found | {
        "conditions": row // 5 % 3 - 1,
        "queue_conditions": entry // 6 % 3 - 1,
        "same_weight": share[0],
        "any_weight": share[1],
        "row_weights": torch.rand(n, device=DEVICE, dtype=torch.float64),
        "normalise_targets": kind.endswith("normalised"),
    }


def results(
    q: Tensor, k: Tensor, queue: Tensor, given: dict[str, Any], tau: float, backend: str
) -> list[Tensor]:
    """(loss, dq, dk, dtau) in float64."""
    q, k = q.clone().requires_grad_(), k.clone().requires_grad_()
    temperature = torch.tensor(tau, dtype=torch.float64, requires_grad=True)
    loss = queue_info_nce(q, k, queue, temperature=temperature, backend=backend, **given)
    loss.backward()
    assert q.grad is not None
    assert k.grad is not None
    assert temperature.grad is not None
    return [loss.detach().double(), q.grad.double(), k.grad.double(), temperature.grad.to(DEVICE)]


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "count", "width", "tau"), sized(SHAPES))
def test_queue_against_float64(
    kind: str, dtype: torch.dtype, n: int, count: int, width: int, tau: float
) -> None:
    if width > triton_maximum_width(dtype, DEVICE):
        pytest.skip("wider than the kernels take")
    q, k = rows(n, width, dtype)
    queue = entries(count, width, dtype)
    given = options(kind, n, count)
    exact = results(q.double(), k.double(), queue.double(), given, tau, truth_backend(n))
    ours = results(q, k, queue, given, tau, "triton")
    pull = [2 / (tau * n * x.float().norm(dim=1).min().item()) for x in (q, k)]
    assert_close(ours, exact, tau, dtype, [1.0, *pull, 1 / tau**2])


def test_repeats_to_the_last_bit() -> None:
    n, count, width, _ = sized(SHAPES)[-1]
    q, k = rows(int(n), int(width), DTYPES[-1])
    queue = entries(int(count), int(width), DTYPES[-1])
    given = options("soft", int(n), int(count))
    first, second = (results(q, k, queue, given, 0.1, "triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_bad_values_are_not_hidden() -> None:
    q, k = rows(50, 16, DTYPES[-1])
    q[7, 3] = math.inf
    queue = entries(40, 16, DTYPES[-1])
    assert not queue_info_nce(q, k, queue, backend="triton").isfinite()
    absent = torch.where(torch.arange(50, device=DEVICE) == 7, -1, 0)
    groups: dict[str, Any] = {
        "groups": absent,
        "queue_groups": torch.zeros(40, dtype=torch.int64, device=DEVICE),
    }
    assert queue_info_nce(q, k, queue, backend="triton", **groups).isfinite()


@gpu_only
def test_no_synchronisation() -> None:
    q, k = rows(512, 64, torch.bfloat16)
    q.requires_grad_()
    queue = entries(1000, 64, torch.bfloat16)
    given = options("soft", 512, 1000)
    for attempt in range(2):
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if attempt else "default")
        try:
            queue_info_nce(q, k, queue, backend="triton", **given).backward()
            queue_info_nce(q, k, queue, backend="triton").backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
