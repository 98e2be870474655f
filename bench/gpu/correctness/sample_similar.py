"""Similarity sampling on a GPU."""

import math

import pytest
import torch

from bench.gpu.correctness.cases import DEVICE, DTYPES, INTERPRETED, gpu_only, sized
from pscl_kernels import sample_similar


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "count", "places", "width"),
    sized(
        [
            (1, 1, 1, 1),
            (2, 4, 90, 20),
            (3, 70, 1000, 64),
            (2, 480, 8836, 64),
            (4, 50, 30, 100),
            (2, 12, 10, 20),
            (2, 64, 35_344, 64),
            (1, 480, 141_376, 64),
        ],
        lambda batch, count, places, width: max(5 * count, places),
    ),
)
def test_sampling_is_greedy(dtype: torch.dtype, batch: int, count: int, places: int, width: int) -> None:
    torch.manual_seed(places)
    patches = torch.randn(batch, places, width, device=DEVICE).to(dtype)
    spread = torch.randn(1, width, device=DEVICE) + 0.3 * torch.randn(count, width, device=DEVICE)
    templates = spread.to(dtype)
    valid = torch.rand(batch, places, device=DEVICE) < 0.9
    taken = sample_similar(templates, patches, valid, backend="triton")
    t, c = (torch.nn.functional.normalize(x.double(), dim=-1) for x in (templates, patches))
    free = valid.clone()
    for m in range(count):
        similarity = (c @ t[m]).masked_fill(~free, -math.inf)
        patch = taken[:, m]
        assert torch.equal(patch < 0, ~free.any(1))
        index = patch.clamp_min(0).unsqueeze(1)
        own, best = similarity.gather(1, index).squeeze(1), similarity.amax(1)
        assert ((own >= best - 5e-6) | (patch < 0)).all()
        free.scatter_(1, index, False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_copies_are_taken_in_order_of_index(dtype: torch.dtype) -> None:
    kinds, copies = (6, 2) if INTERPRETED else (60, 10)
    made = torch.randn(kinds, 24, device=DEVICE)
    if INTERPRETED:
        made = (3 * made).round()  # numpy's products of equal rows differ by rounding
    patches = made.to(dtype).repeat(copies, 1)[None]
    taken = sample_similar(patches[0, :kinds].repeat(copies // 2, 1), patches, backend="triton")[0]
    assert torch.equal(taken.cpu(), torch.arange(kinds * (copies // 2)))


@gpu_only
def test_no_synchronisation() -> None:
    patches = torch.randn(4, 1000, 64, device=DEVICE)
    valid = torch.rand(4, 1000, device=DEVICE) < 0.9
    for backend in ("triton", "chunked"):
        sample_similar(patches[0, :20], patches, valid, backend=backend)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            sample_similar(patches[0, :20], patches, valid, backend=backend)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@gpu_only
def test_cuda_graph() -> None:
    patches = torch.randn(4, 1000, 64, device=DEVICE)
    valid = torch.rand(4, 1000, device=DEVICE) < 0.9

    def sample() -> torch.Tensor:
        return sample_similar(patches[0, :20], patches, valid, backend="triton")

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        sample()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = sample()
    patches.copy_(torch.randn_like(patches))
    graph.replay()
    assert torch.equal(captured, sample())
