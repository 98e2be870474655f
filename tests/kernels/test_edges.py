"""Ends of the number range, function transforms, and the default device."""

import pytest
import torch

from pscl_kernels import patch_nt_xent, queue_info_nce, sample_similar
from pscl_kernels.sample_similar import bounded

from . import edges
from .cases import rows

BACKENDS = ("reference", "chunked")
LOSSES = {"patch_nt_xent": patch_nt_xent, "queue_info_nce": lambda q, k: queue_info_nce(q, k, k.detach())}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "check",
    [
        edges.rows_of_any_length,
        edges.many_equal_rows,
        edges.small_weights,
        edges.temperatures_that_are_not_positive,
        edges.long_keys,
    ],
)
def test_losses(check, backend):
    check(backend, "cpu")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_one_pair(backend, dtype):
    edges.one_pair(backend, "cpu", dtype)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_sampling_of_any_length(backend, fast, monkeypatch):
    monkeypatch.setattr(bounded, "is_fast", lambda: fast)
    edges.sampling_of_any_length(backend, "cpu")


def test_long_rows_of_float64():
    q, k = rows(9, 16)
    for backend in BACKENDS:
        loss = patch_nt_xent(q, k, backend=backend)
        torch.testing.assert_close(patch_nt_xent(q * 1e200, k, backend="chunked"), loss)


@pytest.mark.parametrize("name", LOSSES)
def test_unsupported_transforms_are_refused(name):
    """Forward mode would give a zero tangent, and torch.func.grad an error from inside torch."""
    q, k = rows(8, 4)

    def loss(x):
        return LOSSES[name](x, k)

    calls = {
        "grad": lambda: torch.func.grad(loss)(q),
        "jvp": lambda: torch.func.jvp(loss, (q,), (q,)),
        "jacrev": lambda: torch.func.jacrev(loss)(q),
        "vmap of grad": lambda: torch.func.vmap(torch.func.grad(loss))(q[None]),
        "grad of vmap": lambda: torch.func.grad(lambda x: torch.func.vmap(loss)(x[None]).sum())(q),
    }
    for call in calls.values():
        with pytest.raises(NotImplementedError, match=name):
            call()
    with torch.autograd.forward_ad.dual_level():
        loss(q)  # without a tangent
        with pytest.raises(NotImplementedError, match=name):
            loss(torch.autograd.forward_ad.make_dual(q, q))
        tau = torch.autograd.forward_ad.make_dual(torch.tensor(0.5), torch.tensor(1.0))
        with pytest.raises(NotImplementedError, match="patch_nt_xent"):
            patch_nt_xent(q, k, temperature=tau)
    together = torch.func.vmap(loss)(torch.stack([q, k]))
    torch.testing.assert_close(together, torch.stack([loss(q), loss(k)]))


def test_second_derivatives_are_an_error():
    q, k = rows(8, 4)
    q.requires_grad_()
    (first,) = torch.autograd.grad(patch_nt_xent(q, k), q, create_graph=True)
    with pytest.raises(RuntimeError, match="patch_nt_xent_backward"):
        first.sum().backward()


@pytest.mark.parametrize("fast", [True, False])
def test_default_device_does_not_matter(fast, monkeypatch):
    monkeypatch.setattr(bounded, "is_fast", lambda: fast)
    q, k = rows(20, 8, torch.float32)
    groups = torch.arange(20) % 4

    def results():
        a, b = q.clone().requires_grad_(), k.clone().requires_grad_()
        options = {"groups": groups, "queue_groups": groups, "any_weight": torch.ones_like(q[:, 0])}
        losses = [patch_nt_xent(a, b, groups), queue_info_nce(a, b, k, **options)]
        gradients = torch.autograd.grad(sum(losses), (a, b))
        return [*losses, *gradients, sample_similar(q[:3], k[None])]

    wanted = results()
    with torch.device("meta"):
        found = results()
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
