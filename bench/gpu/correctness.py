"""What must hold on a GPU before any figure is taken: `pytest bench/gpu/correctness.py`."""

import math

import pytest
import torch
from torch import Tensor

from pscl_kernels import patch_nt_xent, sample_similar
from pscl_kernels.backends import TRITON_MAXIMUM_WIDTH, resolve_backend

DEVICE = torch.device("cuda")
Results = list[Tensor]


def rows(n: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    torch.manual_seed(n + width)
    q = torch.randn(n, width, device=DEVICE)
    return q.to(dtype), (0.5 * q + torch.randn_like(q)).to(dtype)


def grouping(kind: str, n: int) -> Tensor | None:
    row = torch.arange(n, device=DEVICE)
    return {
        "none": None,
        "one": row * 0,
        "four": row // 16 % 4,
        "absent": row % 5 - 1,
        "nobody": row * 0 - 1,
    }[kind]


def results(q: Tensor, k: Tensor, groups: Tensor | None, tau: float, backend: str) -> Results:
    q, k = q.clone().requires_grad_(), k.clone().requires_grad_()
    temperature = torch.tensor(tau, dtype=torch.float64, requires_grad=True)
    loss = patch_nt_xent(q, k, groups, temperature=temperature, backend=backend)
    loss.backward()
    assert q.grad is not None
    assert k.grad is not None
    assert temperature.grad is not None
    return [loss.detach().double(), q.grad.double(), k.grad.double(), temperature.grad.to(DEVICE)]


@pytest.mark.parametrize("kind", ["none", "one", "four", "absent", "nobody"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("n", "width", "tau"),
    [
        (1, 16, 0.5),
        (63, 3, 0.1),
        (1000, 64, 0.5),
        (1000, 64, 0.01),
        (777, 100, 0.1),
        (2048, 128, 0.07),
        (500, 512, 0.5),
    ],
)
def test_loss_against_float64(kind: str, dtype: torch.dtype, n: int, width: int, tau: float) -> None:
    if width > TRITON_MAXIMUM_WIDTH[dtype]:
        pytest.skip("wider than the kernels take")
    q, k = rows(n, width, dtype)
    groups = grouping(kind, n)
    exact = results(q.double(), k.double(), groups, tau, "chunked")
    ours = results(q, k, groups, tau, "triton")
    # Rows are rounded to their dtype after scaling, which moves a logit by up to eps / tau.
    rounding = 2 * torch.finfo(dtype).eps / tau + 1e-5
    size = [1.0, *(1 / (tau * 2 * n * x.float().norm(dim=1).min().item()) for x in (q, k)), 1 / tau**2]
    for mine, true, floor in zip(ours, exact, size, strict=True):
        bound = rounding * max(floor, true.abs().max().item())
        assert (mine - true).abs().max().item() <= bound


@pytest.mark.parametrize("n", [300, 4096])
def test_loss_repeats_to_the_last_bit(n: int) -> None:
    q, k = rows(n, 64, torch.bfloat16)
    first, second = (results(q, k, grouping("four", n), 0.1, "triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_bad_values_are_not_hidden() -> None:
    q, k = rows(100, 16, torch.bfloat16)
    q[7, 3] = math.inf
    assert patch_nt_xent(q, k, grouping("four", 100)).isnan()
    absent = torch.where(torch.arange(100, device=DEVICE) == 7, -1, torch.arange(100, device=DEVICE) % 4)
    assert patch_nt_xent(q, k, absent).isfinite()


def test_no_synchronisation_and_device_temperature() -> None:
    q, k = rows(512, 64, torch.bfloat16)
    q.requires_grad_()
    groups = grouping("four", 512)
    temperature = torch.tensor(0.2, device=DEVICE, requires_grad=True)
    patch_nt_xent(q, k, groups, temperature=temperature).backward()
    cells = torch.randn(4, 1000, 64, device=DEVICE)
    sample_similar(cells[0, :20], cells)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = patch_nt_xent(q, k, groups, temperature=temperature)
        loss.backward()
        patch_nt_xent(q, k, groups, temperature=0.2).backward()
        sample_similar(cells[0, :20], cells)
        sample_similar(cells[0, :20], cells, backend="chunked")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(loss, patch_nt_xent(q, k, groups, temperature=0.2), rtol=1e-4, atol=1e-4)


def test_cuda_graph() -> None:
    q, k = rows(512, 64, torch.bfloat16)
    groups = grouping("four", 512)

    def step() -> Tensor:
        return patch_nt_xent(q, k, groups, temperature=0.2)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    q.copy_(torch.randn_like(q))
    graph.replay()
    assert torch.equal(captured, step())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("batch", "count", "places", "width"),
    [(1, 1, 1, 1), (3, 70, 1000, 64), (2, 480, 8836, 64), (4, 50, 30, 100), (2, 64, 35_344, 64)],
)
def test_sampling_is_greedy(dtype: torch.dtype, batch: int, count: int, places: int, width: int) -> None:
    torch.manual_seed(places)
    cells = torch.randn(batch, places, width, device=DEVICE).to(dtype)
    templates = (torch.randn(1, width, device=DEVICE) + 0.3 * torch.randn(count, width, device=DEVICE)).to(
        dtype
    )
    valid = torch.rand(batch, places, device=DEVICE) < 0.9
    taken = sample_similar(templates, cells, valid, backend="triton")
    t, c = (torch.nn.functional.normalize(x.double(), dim=-1) for x in (templates, cells))
    free = valid.clone()
    for m in range(count):
        similarity = (c @ t[m]).masked_fill(~free, -math.inf)
        cell = taken[:, m]
        assert torch.equal(cell < 0, ~free.any(1))
        index = cell.clamp_min(0).unsqueeze(1)
        own, best = similarity.gather(1, index).squeeze(1), similarity.amax(1)
        assert ((own >= best - 5e-6) | (cell < 0)).all()
        free.scatter_(1, index, False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_are_taken_in_order_of_index(dtype: torch.dtype) -> None:
    cells = torch.randn(60, 24, device=DEVICE).to(dtype).repeat(10, 1)[None]
    taken = sample_similar(cells[0, :60].repeat(5, 1), cells, backend="triton")[0]
    assert torch.equal(taken.cpu(), torch.arange(300))


def test_auto_is_triton() -> None:
    assert resolve_backend("auto", torch.ones(1, 4, device=DEVICE)) == "triton"
