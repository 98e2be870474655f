"""The loss against its definition, its oracle and plain torch."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from pscl_kernels import patch_nt_xent, patch_similarity_stats
from pscl_kernels.patch_nt_xent import reference
from pscl_kernels.patch_nt_xent import rows as row_module

from .cases import (
    GROUPINGS,
    assert_as_good_as_torch,
    grouping,
    loss_and_gradients,
    plain_torch,
    rows,
    truth,
)


def by_hand(q, k, groups, tau):
    """The definition, one scalar at a time."""
    n = q.shape[0]
    ids = list(range(n)) if groups is None else groups.tolist()
    views = [[float(v) for v in row] for row in torch.cat([q, k]).tolist()]
    unit = []
    for row in views:
        norm = max(math.sqrt(sum(v * v for v in row)), 1e-8)
        unit.append([v / norm for v in row])
    total, count = 0.0, 0
    for i in range(2 * n):
        if ids[i % n] < 0:
            continue
        s = [sum(a * b for a, b in zip(unit[i], unit[j], strict=True)) / tau for j in range(2 * n)]
        positive = s[(i + n) % (2 * n)]
        negatives = [s[j] for j in range(2 * n) if ids[j % n] >= 0 and ids[j % n] != ids[i % n]]
        total += math.log(math.exp(positive) + sum(math.exp(v) for v in negatives)) - positive
        count += 1
    return total / count if count else 0.0


@pytest.mark.parametrize("kind", GROUPINGS)
@pytest.mark.parametrize(("n", "d"), [(1, 3), (2, 1), (7, 4)])
def test_oracle_is_the_definition(kind, n, d):
    q, k = rows(n, d)
    groups = grouping(kind, n)
    loss = patch_nt_xent(q, k, groups, temperature=0.3, backend="reference")
    assert loss.item() == pytest.approx(by_hand(q, k, groups, 0.3), rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("kind", ["none", "four", "absent"])
@pytest.mark.parametrize("tau", [0.5, 0.012])
def test_gradcheck(backend, kind, tau):
    q, k = (x.requires_grad_() for x in rows(6, 3))
    temperature = torch.tensor(tau, dtype=torch.float64, requires_grad=True)
    groups = grouping(kind, 6)
    torch.autograd.gradcheck(
        lambda a, b, t: patch_nt_xent(a, b, groups, temperature=t, backend=backend),
        (q, k, temperature),
        eps=1e-7,
        atol=1e-5,
    )


@pytest.mark.parametrize("kind", GROUPINGS)
@pytest.mark.parametrize(
    ("n", "d", "tau"),
    [(1, 16, 0.5), (2, 3, 0.1), (63, 1, 0.5), (63, 64, 0.013), (130, 100, 0.01), (1000, 64, 0.07)],
)
def test_chunked_equals_oracle_in_float64(kind, n, d, tau, monkeypatch):
    monkeypatch.setattr(row_module, "TILE_CPU", 96)
    q, k = rows(n, d)
    groups = grouping(kind, n)
    ours = loss_and_gradients(
        lambda a, b, t: patch_nt_xent(a, b, groups, temperature=t, backend="chunked"), q, k, tau
    )
    for mine, true in zip(ours, truth(q, k, groups, tau), strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["none", "one", "unbalanced", "absent", "nobody"])
@pytest.mark.parametrize(("n", "d", "tau"), [(1, 64, 0.5), (63, 16, 0.01), (257, 100, 0.1), (1000, 64, 1.0)])
def test_chunked_is_as_good_as_torch_at_low_precision(dtype, kind, n, d, tau, monkeypatch):
    monkeypatch.setattr(row_module, "TILE_CPU", 200)
    q, k = rows(n, d, dtype)
    groups = grouping(kind, n)
    ours = loss_and_gradients(
        lambda a, b, t: patch_nt_xent(a, b, groups, temperature=t, backend="chunked"), q, k, tau
    )
    torchs = loss_and_gradients(lambda a, b, t: plain_torch(a, b, groups, t), q, k, tau)
    # A float32 rounding of a cosine moves its logit by 2^-24 / tau; gradients come back in the rows' dtype.
    rounding = 2**-24 / tau + 1e-6
    gradient = rounding + torch.finfo(dtype).eps
    tolerances = (rounding, gradient, gradient, rounding)
    terms = [1 / (tau * 2 * n * x.double().norm(dim=1).min().item()) for x in (q, k)]
    floors = (1.0, *terms, 1 / tau**2)
    assert_as_good_as_torch(ours, torchs, truth(q, k, groups, tau), tolerances, floors)


def test_mask_is_group_inequality():
    """Four equal groups: 1.5 N negatives, counted through a loss whose rows are all equal."""
    n = 24
    ones = torch.ones(n, 5, dtype=torch.float64)
    for backend in ("reference", "chunked"):
        loss = patch_nt_xent(ones, ones, torch.arange(n) // 2 % 4, backend=backend)
        assert loss.item() == pytest.approx(math.log(1 + 1.5 * n))
        assert patch_nt_xent(ones, ones, backend=backend).item() == pytest.approx(math.log(2 * n - 1))


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 40),
    seed=st.integers(0, 2**16),
    kind=st.sampled_from(GROUPINGS),
    tau=st.sampled_from([0.01, 0.05, 0.5, 1.0]),
)
def test_order_and_names_of_groups_do_not_matter(n, seed, kind, tau):
    q, k = rows(n, 8, seed=seed)
    groups = grouping(kind, n, seed)
    if groups is None:
        groups = torch.arange(n)
    loss = patch_nt_xent(q, k, groups, temperature=tau)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(n, generator=generator)
    names = torch.randperm(1001 + 6000, generator=generator)
    renamed = torch.where(groups < 0, groups * 3, names[groups.clamp_min(0)])
    other = patch_nt_xent(q[order], k[order], renamed[order], temperature=tau)
    torch.testing.assert_close(loss, other, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(loss, patch_nt_xent(k, q, groups, temperature=tau), rtol=1e-10, atol=1e-12)


def test_scale_of_rows_does_not_matter_and_gradient_is_tangential():
    q, k = (x.requires_grad_() for x in rows(50, 8))
    loss = patch_nt_xent(q, k, grouping("four", 50))
    torch.testing.assert_close(loss, patch_nt_xent(q * 7, k / 3, grouping("four", 50)))
    loss.backward()
    torch.testing.assert_close((q * q.grad).sum(1), torch.zeros(50, dtype=torch.float64), atol=1e-14, rtol=0)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_absent_rows_take_no_part(backend):
    q, k = rows(30, 8)
    groups = torch.arange(30) % 3
    keep = torch.arange(30) % 5 != 0
    marked = torch.where(keep, groups, -4)
    dirty = torch.where(keep[:, None], q, math.nan).requires_grad_()
    expected = patch_nt_xent(q[keep], k[keep], groups[keep], backend=backend)
    loss = patch_nt_xent(dirty, k, marked, backend=backend)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert dirty.grad[~keep].eq(0).all()
    assert dirty.grad[keep].ne(0).all()


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("n", [0, 3])
def test_nobody_takes_part(backend, n):
    q, k = (x.requires_grad_() for x in rows(n, 4))
    loss = patch_nt_xent(q, k, torch.full((n,), -1), backend=backend)
    loss.backward()
    assert loss.item() == 0
    assert q.grad.eq(0).all()
    assert k.grad.eq(0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("kind", ["none", "one", "four"])
def test_bad_values_are_not_hidden(bad, kind):
    q, k = rows(20, 4, torch.float32)
    q[3, 1] = bad
    q.requires_grad_()
    loss = patch_nt_xent(q, k, grouping(kind, 20), backend="chunked")
    loss.backward()
    assert loss.isnan()
    assert q.grad[3].isnan().all()


def test_zero_rows_are_finite():
    q, k = rows(9, 4)
    q[2] = 0
    ours = loss_and_gradients(
        lambda a, b, t: patch_nt_xent(a, b, temperature=t, backend="chunked"), q, k, 0.5
    )
    for mine, true in zip(ours, truth(q, k, None, 0.5), strict=True):
        assert mine.isfinite().all()
        torch.testing.assert_close(mine, true)


def test_memory_is_bounded_by_the_tile(monkeypatch):
    """No allocation as large as a (2N, 2N) matrix, and a small peak in all."""
    n, d, tile = 1500, 16, 128
    monkeypatch.setattr(row_module, "TILE_CPU", tile)
    q, k = (x.requires_grad_() for x in rows(n, d, torch.float32))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        patch_nt_xent(q, k, grouping("four", n), backend="chunked").backward()
    sizes = [e.nbytes() for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert max(sizes) <= max(2 * n * d * 8, tile * tile * 4)
    held = list(itertools.accumulate(sizes))
    assert max(held) < 0.1 * (2 * n) ** 2 * 4


def test_compiles_without_graph_breaks():
    q, k = (x.requires_grad_() for x in rows(33, 8, torch.float32))
    groups = grouping("four", 33)

    def step(a, b):
        return 2 * patch_nt_xent(a * 1.5, b, groups, temperature=0.2)

    expected = step(q, k)
    expected.backward()
    wanted = q.grad.clone()
    q.grad = None
    loss = torch.compile(step, backend="aot_eager", fullgraph=True)(q, k)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(q.grad, wanted)


def test_operator_registration():
    q, k = (x.requires_grad_() for x in rows(12, 4))
    arguments = (
        q,
        k,
        torch.arange(12) % 3,
        torch.tensor(0.5, dtype=torch.float64, requires_grad=True),
        "",
        1,
        "chunked",
    )
    torch.library.opcheck(
        torch.ops.pscl_kernels.patch_nt_xent.default,
        arguments,
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


def test_autocast_and_checkpointing_work_around_it():
    q, k = (x.requires_grad_() for x in rows(40, 8, torch.float32))
    groups = grouping("four", 40)
    expected = patch_nt_xent(q, k, groups, temperature=0.1)
    expected.backward()
    wanted = q.grad.clone()
    q.grad = None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = torch.utils.checkpoint.checkpoint(
            lambda a, b: patch_nt_xent(a, b, groups, temperature=0.1), q, k, use_reentrant=False
        )
    loss.backward()
    assert loss.item() == expected.item()
    assert torch.equal(q.grad, wanted)


@pytest.mark.parametrize("kind", GROUPINGS)
@pytest.mark.parametrize("n", [1, 5, 300])
def test_similarity_stats(kind, n, monkeypatch):
    monkeypatch.setattr(row_module, "TILE_CPU", 70)
    q, k = rows(n, 6)
    groups = grouping(kind, n)
    positive, hardest = patch_similarity_stats(q, k, groups)
    ids = torch.arange(n) if groups is None else groups
    present = torch.cat([ids, ids]) >= 0
    z = torch.nn.functional.normalize(torch.cat([q, k]))[present]
    ids = torch.cat([ids, ids])[present]
    s = (z @ z.T).masked_fill(ids[:, None] == ids[None, :], -math.inf).amax(1) if len(z) else z.sum(1)
    wanted = torch.nn.functional.cosine_similarity(q, k)[present[:n]].mean()
    torch.testing.assert_close(positive, wanted, equal_nan=True)
    torch.testing.assert_close(hardest, s[s > -2].mean(), equal_nan=True)


def test_wrong_arguments():
    q, k = rows(4, 3)
    with pytest.raises(ValueError, match="q and k"):
        patch_nt_xent(q, k[:3])
    with pytest.raises(ValueError, match="q and k"):
        patch_nt_xent(q, k.float())
    with pytest.raises(ValueError, match="groups"):
        patch_nt_xent(q, k, torch.zeros(4))
    with pytest.raises(ValueError, match="groups"):
        patch_nt_xent(q, k, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="temperature"):
        patch_nt_xent(q, k, temperature=0.0)
    with pytest.raises(ValueError, match="temperature"):
        patch_nt_xent(q, k, temperature=torch.ones(1))


def test_reference_accepts_low_precision():
    q, k = rows(10, 4, torch.float16)
    loss = patch_nt_xent(q, k, backend="reference")
    assert loss.dtype == torch.float32
    exact = reference.patch_nt_xent(q, k, torch.arange(10), torch.tensor(0.5))
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)
