"""Rows, groups and oracles that several test modules use."""

import math

import torch
from torch import Tensor

from pscl_kernels.patch_nt_xent import reference


def rows(n: int, d: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two related views of n rows, of norms from about 0.1 to 10."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(n, d, dtype=torch.float64, generator=generator)
    k = 0.5 * q + torch.randn(n, d, dtype=torch.float64, generator=generator)
    length = 10 ** (2 * torch.rand(n, 1, dtype=torch.float64, generator=generator) - 1)
    return (q * length).to(dtype), k.to(dtype)


def grouping(kind: str, n: int, seed: int = 0) -> Tensor | None:
    """Groups of n rows: none | one | four (equal blocks) | unbalanced | absent (some negative) | nobody."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "none":
        return None
    if kind == "one":
        return torch.full((n,), 7)
    if kind == "four":
        return torch.arange(n) * 4 // max(n, 1)
    if kind == "unbalanced":
        return (torch.rand(n, generator=generator) ** 4 * 6).long() * 1000
    if kind == "absent":
        return torch.randint(-2, 3, (n,), generator=generator)
    assert kind == "nobody"
    return torch.full((n,), -1)


GROUPINGS = ("none", "one", "four", "unbalanced", "absent", "nobody")


def loss_and_gradients(loss_of, q: Tensor, k: Tensor, tau: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, grad_q, grad_k, dtau) in float64 on the CPU of `loss_of(q, k, temperature)` on copies of the inputs."""
    q, k = q.clone().requires_grad_(), k.clone().requires_grad_()
    temperature = torch.tensor(tau, dtype=torch.float64, requires_grad=True)
    loss = loss_of(q, k, temperature)
    loss.backward()
    return tuple(t.detach().double().cpu() for t in (loss, q.grad, k.grad, temperature.grad))


def truth(q: Tensor, k: Tensor, groups: Tensor | None, tau: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The float64 oracle's loss and gradients on the given (already rounded) rows."""
    ids = torch.arange(q.shape[0], device=q.device) if groups is None else groups
    return loss_and_gradients(
        lambda a, b, t: reference.patch_nt_xent(a, b, ids, t), q.double(), k.double(), tau
    )


def plain_torch(q: Tensor, k: Tensor, groups: Tensor | None, temperature: Tensor) -> Tensor:
    """The straightforward form: the whole matrix, at the precision of the rows."""
    n = q.shape[0]
    ids = torch.arange(n, device=q.device) if groups is None else groups
    ids = torch.cat([ids, ids])
    z = torch.nn.functional.normalize(torch.cat([q, k]), dim=1, eps=1e-8)
    logits = z @ z.T / temperature.to(z.dtype)
    positive = torch.cat([logits.diagonal(n), logits.diagonal(-n)])
    excluded = (ids[:, None] == ids[None, :]) | (ids < 0)[None, :]
    negatives = torch.logsumexp(logits.masked_fill(excluded, -math.inf), 1)
    present = ids >= 0
    return ((torch.logaddexp(positive, negatives) - positive) * present).sum() / present.sum().clamp_min(1)


def assert_as_good_as_torch(ours, torchs, exact, tolerances, floors) -> None:
    """Three-way rule: |exact - ours| <= |exact - torch at the same precision| + tolerance, by greatest error.

    Each tolerance is relative to the greatest exact value of its tensor, or to its floor where that is larger: the size
    of the terms whose difference it is.
    """
    for name, mine, theirs, true, tolerance, floor in zip(
        ("loss", "grad_q", "grad_k", "dtau"), ours, torchs, exact, tolerances, floors, strict=True
    ):
        if true.numel() == 0:
            continue
        error, allowed = (mine - true).abs().max(), (theirs - true).abs().max()
        bound = allowed + tolerance * true.abs().max().clamp_min(floor)
        assert error <= bound, f"{name}: error {error:.3g}, torch {allowed:.3g}, bound {bound:.3g}"
