# mypy: disable-error-code="no-untyped-call"
"""The Triton kernels on a GPU against their definitions in float64: what must hold before anything is measured.

`pytest bench/gpu/correctness.py -k OPERATION`. With PSCL_BENCH_DEVICE=cpu and TRITON_INTERPRET=1 the small cases run in
Triton's interpreter.
"""

import math
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pscl_kernels import patch_nt_xent, queue_info_nce, sample_similar
from pscl_kernels.backends import resolve_backend, triton_maximum_width

DEVICE = torch.device(os.environ.get("PSCL_BENCH_DEVICE", "cuda"))
INTERPRETED = DEVICE.type == "cpu"
DTYPES = (torch.float16,) if INTERPRETED else (torch.float32, torch.float16, torch.bfloat16)
SMALLEST = DTYPES[-1]

gpu_only = pytest.mark.skipif(INTERPRETED, reason="tests nothing without a GPU")

Loss = Callable[[Tensor, Tensor, float | Tensor, str], Tensor]
"""(q, k, temperature, backend) -> loss; backend "triton" is the variant under test."""


def cases(shapes: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """(dtype, rows or patches, ..., width, ...) for each shape, in the interpreter for small ones only.

    float16 has the same kernels as bfloat16, so on a GPU one width is enough: compilation takes most of the time.
    """
    if INTERPRETED:
        return [(torch.float16, *shape) for shape in shapes if shape[0] <= 100]
    return [(d, *shape) for d in DTYPES for shape in shapes if d != torch.float16 or 64 in shape]


def rows(n: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two related views of n rows."""
    torch.manual_seed(n + width)
    q = torch.randn(n, width, device=DEVICE)
    return q.to(dtype), (0.5 * q + torch.randn_like(q)).to(dtype)


def with_gradients(loss: Loss, q: Tensor, k: Tensor, tau: float, backend: str) -> list[Tensor]:
    """(loss, dq, dk, dtau) in float64."""
    q, k = q.clone().requires_grad_(), k.clone().requires_grad_()
    temperature = torch.tensor(tau, dtype=torch.float64, requires_grad=True)
    value = loss(q, k, temperature, backend)
    found = (value, *torch.autograd.grad(value, (q, k, temperature)))
    return [x.detach().double().to(DEVICE) for x in found]


def check(loss: Loss, q: Tensor, k: Tensor, tau: float, terms: float) -> None:
    """Compare loss and gradients with float64 on the same rounded rows; the loss is a mean over `terms`.

    The kernels round rows to their dtype after scaling, which moves a logit by up to eps / tau. Errors are relative to
    the larger of the greatest exact value and the size of the terms that make up each result.
    """
    if q.shape[1] > triton_maximum_width(q.dtype, DEVICE):
        pytest.skip("the kernels do not take rows as wide as this")
    # The definition holds all pairs, so it serves small problems only.
    exact = with_gradients(loss, q.double(), k.double(), tau, "reference" if len(q) <= 4096 else "chunked")
    pull = [1 / (tau * terms * x.float().norm(dim=1).min().item()) for x in (q, k)]
    bound = 2 * torch.finfo(q.dtype).eps / tau + 1e-5
    found = with_gradients(loss, q, k, tau, "triton")
    for ours, true, size in zip(found, exact, (1.0, *pull, 1 / tau**2), strict=True):
        assert (ours - true).abs().max().item() <= bound * max(size, true.abs().max().item())


def nt_xent(kind: str, n: int) -> Loss:
    row = torch.arange(n, device=DEVICE)
    groups = {
        "none": None,
        "one": row * 0,
        "four": row // 16 % 4,
        "absent": row % 5 - 1,
        "nobody": row * 0 - 1,
    }

    def loss(q: Tensor, k: Tensor, tau: float | Tensor, backend: str) -> Tensor:
        return patch_nt_xent(q, k, groups[kind], temperature=tau, backend=backend)

    return loss


def info_nce(kind: str, n: int, count: int, width: int, dtype: torch.dtype) -> Loss:
    torch.manual_seed(count)
    queue = torch.nn.functional.normalize(torch.randn(count, width, device=DEVICE), dim=1).to(dtype)
    row, entry = torch.arange(n, device=DEVICE), torch.arange(count, device=DEVICE)
    options: dict[str, Any] = {}
    if kind != "plain":
        options |= {"groups": row % 5 - 1, "queue_groups": entry % 6 - 1}
    if kind.startswith("soft"):
        same, other = torch.rand(2, count, device=DEVICE, dtype=torch.float64) / count
        options |= {
            "subgroups": row // 5 % 3 - 1,
            "queue_subgroups": entry // 6 % 3 - 1,
            "same_weight": same,
            "any_weight": other,
            "row_weights": torch.rand(n, device=DEVICE, dtype=torch.float64),
            "normalise_targets": kind == "soft, normalised",
        }

    def loss(q: Tensor, k: Tensor, tau: float | Tensor, backend: str) -> Tensor:
        return queue_info_nce(q, k, queue.to(q.dtype), temperature=tau, backend=backend, **options)

    return loss


LOSSES: dict[str, Callable[[int], Loss]] = {
    "patch_nt_xent": lambda n: nt_xent("absent", n),
    "queue_info_nce": lambda n: info_nce("soft", n, 2 * n, 64, SMALLEST),
}
"""One loss of n rows of 64 numbers for each operation; the names serve `-k`."""


@pytest.mark.parametrize(
    "kind", ["none", "absent"] if INTERPRETED else ["none", "one", "four", "absent", "nobody"]
)
@pytest.mark.parametrize(
    ("dtype", "n", "width", "tau"),
    cases(
        [
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
    ),
)
def test_patch_nt_xent(kind: str, dtype: torch.dtype, n: int, width: int, tau: float) -> None:
    check(nt_xent(kind, n), *rows(n, width, dtype), tau, 2 * n)


@pytest.mark.parametrize("kind", ["plain", "empty slots", "soft", "soft, normalised"])
@pytest.mark.parametrize(
    ("dtype", "n", "count", "width", "tau"),
    cases(
        [
            (1, 1, 16, 0.5),
            (13, 40, 20, 0.1),
            (33, 40, 16, 0.01),
            (1000, 504, 64, 0.07),
            (777, 3000, 100, 0.2),
            (500, 2048, 128, 0.01),
            (300, 1000, 512, 0.2),
            (20_000, 16_384, 64, 0.1),
        ]
    ),
)
def test_queue_info_nce(kind: str, dtype: torch.dtype, n: int, count: int, width: int, tau: float) -> None:
    check(info_nce(kind, n, count, width, dtype), *rows(n, width, dtype), tau, n / 2)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("n", [40] if INTERPRETED else [40, 300, 4096, 20_000])
def test_results_repeat_to_the_last_bit(name: str, n: int) -> None:
    q, k = rows(n, 64, SMALLEST)
    first, second = (with_gradients(LOSSES[name](n), q, k, 0.1, "triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", LOSSES)
def test_infinity_is_not_hidden(name: str) -> None:
    q, k = rows(100, 64, SMALLEST)
    loss = LOSSES[name](100)
    assert loss(q, k, 0.1, "triton").isfinite()
    q[7, 3] = math.inf
    assert not loss(q, k, 0.1, "triton").isfinite()


@pytest.mark.parametrize("name", LOSSES)
def test_rows_that_take_no_part_may_hold_infinity(name: str) -> None:
    q, k = rows(100, 64, SMALLEST)
    q[5, 3] = math.inf  # group -1
    assert LOSSES[name](100)(q, k, 0.1, "triton").isfinite()


@gpu_only
@pytest.mark.parametrize("name", LOSSES)
def test_nothing_waits_for_the_gpu(name: str) -> None:
    q, k = rows(512, 64, SMALLEST)
    q.requires_grad_()
    temperature = torch.tensor(0.2, device=DEVICE, requires_grad=True)
    loss = LOSSES[name](512)

    def step() -> list[Tensor]:
        values = [loss(q, k, tau, "triton") for tau in (temperature, 0.2)]
        for value in values:
            value.backward()
        return values

    first, second = without_synchronisation(step)
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


@gpu_only
@pytest.mark.parametrize("backend", ["triton", "chunked"])
def test_sample_similar_does_not_wait_for_the_gpu(backend: str) -> None:
    patches, valid = torch.randn(4, 1000, 64, device=DEVICE), torch.rand(4, 1000, device=DEVICE) < 0.9
    without_synchronisation(lambda: sample_similar(patches[0, :20], patches, valid, backend=backend))


def without_synchronisation(call: Callable[[], Any]) -> Any:
    """Run `call` twice, the second time such that waiting for the GPU is an error."""
    call()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        return call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@gpu_only
@pytest.mark.parametrize("name", ["patch_nt_xent", "sample_similar"])
def test_cuda_graph(name: str) -> None:
    q, k = rows(512, 64, SMALLEST)
    q.requires_grad_()
    loss = LOSSES[name](512) if name in LOSSES else None

    def step() -> tuple[Tensor, ...]:
        if loss is None:
            return (sample_similar(k[:20], q.detach()[None], backend="triton"),)
        value = loss(q, k, 0.2, "triton")
        return value.detach(), torch.autograd.grad(value, q)[0]

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
def test_patch_nt_xent_uses_triton_by_default() -> None:
    assert resolve_backend("auto", torch.ones(1, 4, device=DEVICE)) == "triton"


@pytest.mark.parametrize(
    ("dtype", "places", "batch", "count", "width"),
    cases(
        [
            (1, 1, 1, 1),
            (90, 2, 4, 20),
            (1000, 3, 70, 64),
            (8836, 2, 480, 64),
            (130, 4, 200, 100),
            (10, 2, 12, 20),
            (35_344, 2, 64, 64),
            (141_376, 1, 480, 64),
        ]
    ),
)
def test_sample_similar_is_greedy(
    dtype: torch.dtype, places: int, batch: int, count: int, width: int
) -> None:
    torch.manual_seed(places)
    patches = torch.randn(batch, places, width, device=DEVICE).to(dtype)
    spread = torch.randn(1, width, device=DEVICE) + 0.3 * torch.randn(count, width, device=DEVICE)
    templates = spread.to(dtype)
    free = torch.rand(batch, places, device=DEVICE) < 0.9
    taken = sample_similar(templates, patches, free, backend="triton")
    t, c = (torch.nn.functional.normalize(x.double(), dim=-1) for x in (templates, patches))
    for m in range(count):
        similarity = (c @ t[m]).masked_fill(~free, -math.inf)
        patch = taken[:, m]
        assert torch.equal(patch < 0, ~free.any(1))
        index = patch.clamp_min(0).unsqueeze(1)
        own, best = similarity.gather(1, index).squeeze(1), similarity.amax(1)
        assert ((own >= best - 5e-6) | (patch < 0)).all()
        free.scatter_(1, index, False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sample_similar_takes_copies_in_order_of_index(dtype: torch.dtype) -> None:
    kinds, copies = (6, 2) if INTERPRETED else (60, 10)
    made = torch.randn(kinds, 24, device=DEVICE)
    if INTERPRETED:
        made = (3 * made).round()  # numpy's products of equal rows differ by rounding
    patches = made.to(dtype).repeat(copies, 1)[None]
    taken = sample_similar(patches[0, :kinds].repeat(copies // 2, 1), patches, backend="triton")[0]
    assert torch.equal(taken.cpu(), torch.arange(kinds * (copies // 2)))
