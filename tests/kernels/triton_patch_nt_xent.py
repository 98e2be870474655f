"""The Triton kernels of the loss, in Triton's interpreter or on a GPU; `test_triton.py` starts this file.

The interpreter computes bfloat16 products wrongly, so that inputs are float32 and float16.
"""

import pytest
import torch
import triton
import triton.language as tl

from pscl_kernels import patch_nt_xent
from pscl_kernels.patch_nt_xent import rows as row_module
from pscl_kernels.patch_nt_xent.triton import backward, preparation, tiling

from . import edges
from .cases import GROUPINGS, assert_as_good_as_torch, grouping, loss_and_gradients, plain_torch, rows, truth
from .device import DEVICE, EXTRA, interpreter_only, poison  # noqa: F401
from .ranks import compare_ranks_with_oracle

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture
def _small_tiles(monkeypatch):
    """Shards and tiles small enough that groups span several, as they do at the sizes of training."""
    monkeypatch.setattr(row_module, "SHARD_PAIRS", 32)
    for name in ("forward_config", "backward_config"):
        monkeypatch.setattr(tiling, name, lambda *_: tiling.Config(32, 16, 4, 1))


@pytest.fixture
def _device_temperature(monkeypatch):
    """As if the temperature were on the device, so that the host does not know which sums it needs."""
    monkeypatch.setattr(tiling, "is_plain", lambda temperature: None)
    for module in (preparation, backward):
        name = "temperature_argument"
        target = module if hasattr(module, name) else tiling
        monkeypatch.setattr(target, name, lambda temperature: (temperature, 0.0))


def check(q, k, groups, tau, *, extra=0.0, **options):
    ids = None if groups is None else groups.to(DEVICE)
    ours = loss_and_gradients(
        lambda a, b, t: patch_nt_xent(a, b, ids, temperature=t, backend="triton", **options),
        q.to(DEVICE),
        k.to(DEVICE),
        tau,
    )
    torchs = loss_and_gradients(lambda a, b, t: plain_torch(a, b, groups, t), q, k, tau)
    # The kernels round the scaled rows to their dtype: that moves a logit by up to eps / tau.
    rounding = torch.finfo(q.dtype).eps / tau + 1e-6 + EXTRA + extra
    gradient = 2 * rounding
    n = q.shape[0]
    terms = [1 / (tau * 2 * n * x.double().norm(dim=1).min().item()) for x in (q, k)]
    assert_as_good_as_torch(
        ours,
        torchs,
        truth(q, k, groups, tau),
        (rounding, gradient, gradient, rounding),
        (1.0, *terms, 1 / tau**2),
    )


@pytest.mark.parametrize("kind", GROUPINGS)
@pytest.mark.parametrize(
    ("n", "d", "tau", "dtype"),
    [
        (1, 16, 0.5, torch.float32),
        (2, 1, 0.1, torch.float16),
        (63, 3, 0.01, torch.float32),
        (63, 100, 0.5, torch.float16),
    ],
)
def test_loss_with_shipped_tiles(kind, n, d, tau, dtype):
    check(*rows(n, d, dtype), grouping(kind, n), tau)


@pytest.mark.parametrize("kind", GROUPINGS)
@pytest.mark.parametrize(("n", "tau"), [(80, 0.07), (77, 0.012)])
@pytest.mark.usefixtures("_small_tiles")
def test_loss_over_many_tiles(kind, n, tau):
    check(*rows(n, 24, torch.float32), grouping(kind, n), tau)


@pytest.mark.usefixtures("_small_tiles")
def test_unaligned_runs_of_absent_and_equal_groups():
    """Every way in which run ends can fall on tile edges: first, last and middle groups of many sizes."""
    for absent, first, second in [
        (0, 16, 16),
        (5, 3, 40),
        (16, 32, 8),
        (8, 8, 8),
        (9, 1, 30),
        (47, 1, 0),
        (1, 46, 1),
    ]:
        sizes = torch.tensor([absent, first, second, max(0, 48 - absent - first - second)])
        groups = torch.repeat_interleave(torch.tensor([-1, 0, 1, 2]), sizes)[torch.randperm(int(sizes.sum()))]
        check(*rows(len(groups), 16, torch.float32), groups, 0.2)


@pytest.mark.parametrize("tau", [0.5, 0.0137, 0.005])
@pytest.mark.usefixtures("_small_tiles")
def test_device_chooses_the_sums_by_the_temperature(request, tau):
    """The same kernels as for a number, of two that are launched. At 0.005 plain sums overflow: exponents reach 288."""
    q, k = (x.to(DEVICE) for x in rows(80, 16, torch.float32))
    temperature = torch.tensor(tau, dtype=torch.float64, device=DEVICE)

    def results(where):
        return loss_and_gradients(
            lambda a, b, t: patch_nt_xent(
                a, b, grouping("four", 80).to(DEVICE), temperature=t, backend="triton"
            ),
            q,
            k,
            temperature,
        )

    known = results("cpu")
    request.getfixturevalue("_device_temperature")
    for mine, theirs in zip(results(DEVICE), known, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)
    check(q, k, grouping("four", 80), tau)


@triton.jit
def _exponentials(x, out, SHARE: tl.constexpr):
    place = tl.arange(0, 16)[:, None] * 64 + tl.arange(0, 64)[None, :]
    tl.store(out + place, tiling.exp2_by_shares(tl.load(x + place), SHARE))


def test_polynomial_is_accurate_in_its_share_of_the_columns():
    x = (torch.rand(16, 64, device=DEVICE) - 0.5) * 240
    x[3] = torch.nan
    out = torch.empty_like(x)
    _exponentials[(1,)](x, out, SHARE=5)
    assert out[3].isnan().all()
    kept = [row for row in range(16) if row != 3]
    error = (out.double() / torch.exp2(x.double()) - 1).abs()[kept].amax(0)
    assert error.max() < 8e-5
    assert (error > 1e-5 + EXTRA).sum() == 64 * 5 // 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("share", [1, 5, 8])
@pytest.mark.parametrize("tau", [0.5, 0.05])
def test_loss_with_polynomial_exponentials(monkeypatch, share, tau, dtype):
    for name in ("forward_config", "backward_config"):
        monkeypatch.setattr(tiling, name, lambda *_: tiling.Config(32, 64, 4, 1, polynomial=share))
    q, k = rows(150, 16, dtype)
    ids = grouping("four", 150)
    check(q, k, ids, tau, extra=1e-4)


def test_sorting_is_that_of_the_other_backends():
    for n, pairs in ((1, 4), (7, 4), (8, 4), (50, 16), (30, 64)):
        groups = torch.randint(-1, 4, (n,), device=DEVICE)
        groups[-1] = -1  # sorted behind the pairs that fill the last shard, if those were not the last
        q, k = (torch.randn(n, 5, device=DEVICE) for _ in range(2))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(row_module, "SHARD_PAIRS", pairs)
            found = preparation.prepare(q, k, groups, torch.tensor(0.3, dtype=torch.float64))
            expected = row_module.sorted_rows(q, k, groups)
        for name in ("label", "order", "partner"):
            assert torch.equal(getattr(found, name), getattr(expected.sorting, name)), (n, pairs, name)
        torch.testing.assert_close(found.norm, torch.where(found.label < 0, expected.norm, found.norm))


def test_results_do_not_vary():
    q, k = (x.to(DEVICE) for x in rows(70, 16, torch.float32))
    first, second = (
        loss_and_gradients(lambda a, b, t: patch_nt_xent(a, b, temperature=t, backend="triton"), q, k, 0.1)
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_bad_values_are_not_hidden_and_absent_rows_may_hold_them():
    q, k = (x.to(DEVICE) for x in rows(20, 4, torch.float32))
    q[3, 1] = torch.nan
    groups = torch.arange(20, device=DEVICE) % 4
    q.requires_grad_()
    loss = patch_nt_xent(q, k, groups, backend="triton")
    loss.backward()
    assert loss.isnan()
    assert q.grad[3].isnan().all()
    q.grad = None
    groups[3] = -1
    loss = patch_nt_xent(q, k, groups, backend="triton")
    loss.backward()
    assert loss.isfinite()
    assert q.grad.isfinite().all()
    assert q.grad[3].eq(0).all()


def test_empty_input_and_zero_rows():
    empty = torch.ones(0, 8, requires_grad=True, device=DEVICE)
    loss = patch_nt_xent(empty, empty, backend="triton")
    loss.backward()
    assert loss.item() == 0
    q, k = rows(9, 4, torch.float32)
    q[2] = 0
    ours = edges.patch_loss("triton", q.to(DEVICE), k.to(DEVICE), 0.5)
    for mine, true in zip(ours, truth(q, k, None, 0.5), strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-5 + EXTRA, atol=1e-7 + EXTRA)


def test_limits():
    wide = torch.ones(2, 129, device=DEVICE)
    with pytest.raises(ValueError, match=r"triton.* 129"):
        patch_nt_xent(wide, wide, backend="triton")
    with pytest.raises(ValueError, match="triton"):
        patch_nt_xent(wide[:, :4].double(), wide[:, :4].double(), backend="triton")


@pytest.mark.parametrize(
    "check",
    [
        edges.rows_of_any_length,
        edges.many_equal_rows,
        edges.small_weights,
        edges.temperatures_that_are_not_positive,
    ],
)
def test_ends_of_the_number_range(check):
    check("triton", DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_one_pair(dtype):
    edges.one_pair("triton", DEVICE, dtype)


@interpreter_only
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_agree_with_one(world, tmp_path):
    compare_ranks_with_oracle(world, tmp_path, "float32", ["triton"], rtol=2e-5, atol=1e-6)
