"""The Triton kernels of the sampling, in Triton's interpreter or on a GPU; `test_triton.py` starts this file."""

import pytest
import torch

from pscl_kernels import sample_similar

from . import edges
from .device import DEVICE, poison  # noqa: F401
from .test_sample_similar import assert_greedy, by_hand, lattice

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def sampled(templates, patches, valid=None):
    """(B, T) choices of the Triton kernels, on the CPU."""
    valid = None if valid is None else valid.to(DEVICE)
    return sample_similar(templates.to(DEVICE), patches.to(DEVICE), valid, backend="triton").cpu()


def test_vectors_of_any_length():
    edges.sampling_of_any_length("triton", DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("batch", "count", "places", "width", "own", "masked"),
    [
        (1, 1, 1, 1, False, False),
        (2, 7, 130, 3, True, True),
        (1, 20, 17, 70, False, True),
        (2, 3, 600, 64, True, False),
    ],
)
def test_sampling(dtype, batch, count, places, width, own, masked):
    patches = torch.randn(batch, places, width).to(dtype)
    templates = torch.randn(*((batch, count) if own else (count,)), width).to(dtype)
    valid = torch.rand(batch, places) < 0.6 if masked else torch.ones(batch, places, dtype=torch.bool)
    assert_greedy(templates, patches, valid, sampled(templates, patches, valid if masked else None))


@pytest.mark.parametrize(("count", "places"), [(5, 1), (6, 140), (33, 40), (34, 40)])
def test_sampling_of_ties_and_shortage(count, places):
    generator = torch.Generator().manual_seed(count)
    for batch in (1, 2) if count < 30 else (1,):
        patches, templates = lattice((batch, places), generator), lattice((count,), generator)
        valid = torch.rand(batch, places, generator=generator) < 0.8
        assert torch.equal(sampled(templates, patches, valid), by_hand(templates, patches, valid))


def test_sampling_of_zeros_nan_and_strided_maps():
    patches = torch.tensor([[[-1.0, 0], [0, 0], [1, 0], [torch.nan, 0]]])
    templates = torch.tensor([[0.0, 0], [1, 0], [-1, 0], [1, 1], [1, 0]])
    assert sampled(templates, patches).tolist() == [[3, 2, 0, 1, -1]]
    assert sampled(torch.ones(3, 2), torch.ones(2, 0, 2)).tolist() == [[-1] * 3] * 2
    maps = torch.randn(2, 16, 12, 11).flatten(2).transpose(1, 2)
    templates = torch.randn(4, 16)
    assert torch.equal(
        sampled(templates, maps),
        sample_similar(templates, maps, backend="reference"),
    )


@pytest.mark.parametrize("by_feature", [False, True])
def test_sampling_of_an_image_that_spans_more_than_32_bits(by_feature):
    """The memory is allocated, but only a few pages of it are used."""
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        far = 2**30 + 512  # twice that is beyond 31 bits
        memory = torch.empty(2 * far + 64, dtype=torch.float16, device=DEVICE)
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = fill
    patches = memory.as_strided((1, 3, 3), (0, 1, far) if by_feature else (0, far, 1))
    patches.copy_(torch.tensor([[[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]]))
    templates = torch.tensor([[0.1, 0.2, 1], [0.1, 1, 0.2], [0.1, 0, 1]], dtype=torch.float16)
    assert sampled(templates, patches).tolist() == [[2, 1, 0]]
