"""Inputs at the ends of the number range, for every backend: called by `test_edges.py` and, for Triton, `triton_*.py`."""

import math

import torch
from torch import Tensor

from pscl_kernels import patch_nt_xent, queue_info_nce, sample_similar

from . import queue_cases
from .cases import loss_and_gradients, rows, truth


def _close(ours: tuple[Tensor, ...], exact: tuple[Tensor, ...], rtol: float) -> None:
    """Row by row, because the gradients of short and long rows differ by many orders of magnitude."""
    for mine, true in zip(ours, exact, strict=True):
        mine, true = mine.cpu(), true.cpu()
        size = true.abs().amax(-1, keepdim=True) if true.ndim else true.abs()
        assert ((mine - true).abs() <= rtol * size + 1e-38).all()


def patch_loss(backend: str, q: Tensor, k: Tensor, tau: float) -> tuple[Tensor, ...]:
    return loss_and_gradients(lambda a, b, t: patch_nt_xent(a, b, temperature=t, backend=backend), q, k, tau)


def queue_loss(backend: str, q: Tensor, k: Tensor, queue: Tensor, tau: float) -> tuple[Tensor, ...]:
    return loss_and_gradients(
        lambda a, b, t: queue_info_nce(a, b, queue, temperature=t, backend=backend), q, k, tau
    )


def rows_of_any_length(backend: str, device: str) -> None:
    """Below the floor the divisor is constant, so that the gradient has a radial part; squares may overflow."""
    for lengths in ((1e-9, 3e-10, 9e-9, 1.1e-8), (1e18, 1e20, 1e30, 1e37)):
        q, k = rows(9, 16, torch.float32)
        for place, length in enumerate(lengths):
            for x in (q, k):
                x[2 * place] *= length / x[2 * place].norm()
        _close(patch_loss(backend, q.to(device), k.to(device), 0.5), truth(q, k, None, 0.5), 3e-5)
        queue = torch.nn.functional.normalize(torch.randn(11, 16), dim=1)
        ours = queue_loss(backend, q.to(device), k.to(device), queue.to(device), 0.5)
        _close(ours, queue_cases.truth(q, k, queue, {}, 0.5), 3e-5)


def many_equal_rows(backend: str, device: str) -> None:
    """At this temperature an exponential is 2^120: plain sums of more than 222 of them overflow float32."""
    ones = torch.ones(150, 16, device=device)
    loss, *gradients = patch_loss(backend, ones, ones, 0.012)
    assert abs(loss.item() - math.log(299)) < 1e-3
    assert all(x.isfinite().all() for x in gradients)


def one_pair(backend: str, device: str, dtype: torch.dtype) -> None:
    """A row with no negatives has no gradient: its positive is the same number in both passes."""
    q, k = (x.to(device) for x in rows(1, 16, dtype, seed=3))
    loss, grad_q, grad_k, dtau = patch_loss(backend, q, k, 0.05)
    for x in (loss, grad_q, grad_k, dtau):
        assert x.abs().max() <= 1e-6


def small_weights(backend: str, device: str) -> None:
    """Equal views of orthogonal rows: the gradient is that of negatives, whose weights are all about 9e-8.

    Float16 has multiples of 6e-8 there; the factor keeps gradients of the rows in its range.
    """
    q, factor = torch.eye(24, 64).half(), 2.0**20
    groups = torch.arange(24, device=device)
    ours = loss_and_gradients(
        lambda a, b, t: factor * patch_nt_xent(a, b, groups, temperature=t, backend=backend),
        q.to(device),
        q.to(device),
        0.0591,
    )
    exact = truth(q, q, None, 0.0591)
    for mine, true in zip(ours[1:3], exact[1:3], strict=True):
        assert (mine - factor * true).norm() <= 0.03 * (factor * true).norm()


def temperatures_that_are_not_positive(backend: str, device: str) -> None:
    """A number is an error; the value of a tensor may not be read, and makes the loss NaN."""
    q, k = (x.to(device) for x in rows(5, 16, torch.float32))
    for value in (-0.5, 0.0, math.nan):
        tau = torch.tensor(value, device=device)
        assert patch_nt_xent(q, k, temperature=tau, backend=backend).isnan()
        assert queue_info_nce(q, k, k, temperature=tau, backend=backend).isnan()


def long_keys(backend: str, device: str) -> None:
    """Float32 holds the exponents, though not the squares of the keys."""
    q, k = rows(6, 16, torch.float32)
    for length in (1e6, 1e20, 1e30):
        queue = length * torch.nn.functional.normalize(torch.randn(7, 16), dim=1)
        ours = queue_loss(backend, q.to(device), k.to(device), queue.to(device), 0.5)
        _close(ours, queue_cases.truth(q, k, queue, {}, 0.5), 1e-4)


def sampling_of_any_length(backend: str, device: str) -> None:
    """Similarity does not depend on the length of patches and templates, from the floor to the end of float32."""
    patches, templates = torch.randn(2, 300, 16), torch.randn(7, 16)
    wanted = sample_similar(templates, patches, backend="reference")
    power = torch.randint(-20, 121, (2, 300, 1)).float()
    for factor in (1.0, 2.0**70, 2.0**-20):
        taken = sample_similar(
            (templates * factor).to(device), (patches * torch.exp2(power)).to(device), backend=backend
        )
        assert torch.equal(taken.cpu(), wanted)
    short = torch.tensor([[[1e-9, 0.0], [1.0, 3.0], [2e-9, 0.0]]], device=device)
    taken = sample_similar(torch.tensor([[1.0, 0.0]] * 3, device=device), short, backend=backend)
    assert taken.tolist() == [[1, 2, 0]]  # below the floor a length counts: cosines .1, .2 and .316
