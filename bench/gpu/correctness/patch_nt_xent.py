# mypy: disable-error-code="no-untyped-call"
"""The loss on a GPU, both forward passes."""

import math

import pytest
import torch
from torch import Tensor

from bench.gpu.correctness.cases import (
    DEVICE,
    DTYPES,
    INTERPRETED,
    assert_close,
    gpu_only,
    rows,
    sized,
    truth_backend,
)
from bench.gpu.variants import ROW, SYMMETRIC, using
from pscl_kernels import patch_nt_xent
from pscl_kernels.backends import resolve_backend, triton_maximum_width

VARIANTS = (ROW, SYMMETRIC)

KINDS = ("none", "absent") if INTERPRETED else ("none", "one", "four", "absent", "nobody")

SHAPES = [
    (1, 16, 0.5),
    (63, 3, 0.1),
    (40, 20, 0.01),
    (1000, 64, 0.5),
    (1000, 64, 0.01),
    (777, 100, 0.1),
    (2048, 128, 0.07),
    (500, 256, 0.1),
    (500, 512, 0.5),
    (20_000, 64, 0.1),
]


def grouping(kind: str, n: int) -> Tensor | None:
    row = torch.arange(n, device=DEVICE)
    return {
        "none": None,
        "one": row * 0,
        "four": row // 16 % 4,
        "absent": row % 5 - 1,
        "nobody": row * 0 - 1,
    }[kind]


def results(q: Tensor, k: Tensor, groups: Tensor | None, tau: float, backend: str) -> list[Tensor]:
    """(loss, dq, dk, dtau) in float64."""
    q, k = q.clone().requires_grad_(), k.clone().requires_grad_()
    temperature = torch.tensor(tau, dtype=torch.float64, requires_grad=True)
    loss = patch_nt_xent(q, k, groups, temperature=temperature, backend=backend)
    loss.backward()
    assert q.grad is not None
    assert k.grad is not None
    assert temperature.grad is not None
    return [loss.detach().double(), q.grad.double(), k.grad.double(), temperature.grad.to(DEVICE)]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "width", "tau"), sized(SHAPES))
def test_loss_against_float64(
    variant: str, kind: str, dtype: torch.dtype, n: int, width: int, tau: float
) -> None:
    if width > triton_maximum_width(dtype, DEVICE):
        pytest.skip("wider than the kernels take")
    q, k = rows(n, width, dtype)
    groups = grouping(kind, n)
    exact = results(q.double(), k.double(), groups, tau, truth_backend(n))
    with using(variant) as backend:
        ours = results(q, k, groups, tau, backend)
    pull = [1 / (tau * 2 * n * x.float().norm(dim=1).min().item()) for x in (q, k)]
    assert_close(ours, exact, tau, dtype, [1.0, *pull, 1 / tau**2])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("n", [int(n) for (n,) in sized([(40,), (300,), (4096,), (40_000,)])])
def test_repeats_to_the_last_bit(n: int, variant: str) -> None:
    q, k = rows(n, 64, DTYPES[-1])
    with using(variant) as backend:
        first, second = (results(q, k, grouping("four", n), 0.1, backend) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_bad_values_are_not_hidden(variant: str) -> None:
    q, k = rows(100, 16, DTYPES[-1])
    q[7, 3] = math.inf
    row = torch.arange(100, device=DEVICE)
    with using(variant) as backend:
        assert patch_nt_xent(q, k, grouping("four", 100), backend=backend).isnan()
        assert patch_nt_xent(q, k, torch.where(row == 7, -1, row % 4), backend=backend).isfinite()


@gpu_only
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_synchronisation_and_device_temperature(variant: str) -> None:
    q, k = rows(512, 64, torch.bfloat16)
    q.requires_grad_()
    groups = grouping("four", 512)
    temperature = torch.tensor(0.2, device=DEVICE, requires_grad=True)
    with using(variant) as backend:
        patch_nt_xent(q, k, groups, temperature=temperature, backend=backend).backward()
        patch_nt_xent(q, k, groups, temperature=0.2, backend=backend).backward()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            loss = patch_nt_xent(q, k, groups, temperature=temperature, backend=backend)
            loss.backward()
            fixed = patch_nt_xent(q, k, groups, temperature=0.2, backend=backend)
            fixed.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(loss, fixed, rtol=1e-4, atol=1e-4)


@gpu_only
@pytest.mark.parametrize("variant", VARIANTS)
def test_cuda_graph_of_forward_and_backward(variant: str) -> None:
    q, k = rows(512, 64, torch.bfloat16)
    q.requires_grad_()
    groups = grouping("four", 512)

    def step() -> tuple[Tensor, Tensor]:
        with using(variant) as backend:
            loss = patch_nt_xent(q, k, groups, temperature=0.2, backend=backend)
        return loss.detach(), torch.autograd.grad(loss, q)[0]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        q.copy_(torch.randn_like(q))
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, step(), strict=True))


@gpu_only
def test_auto_is_triton() -> None:
    assert resolve_backend("auto", torch.ones(1, 4, device=DEVICE)) == "triton"
