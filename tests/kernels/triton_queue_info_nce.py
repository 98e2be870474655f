"""The Triton kernels of the queue loss, in Triton's interpreter or on a GPU; `test_triton.py` starts this file."""

import math

import pytest
import torch

from pscl_kernels import queue_info_nce
from pscl_kernels.queue_info_nce import chunked
from pscl_kernels.queue_info_nce.labels import Labels
from pscl_kernels.queue_info_nce.operation import Rows
from pscl_kernels.queue_info_nce.triton import losses as triton_losses
from pscl_kernels.queue_info_nce.triton import runs, sorting, tiling

from . import edges
from .cases import loss_and_gradients
from .device import DEVICE, EXTRA, poison  # noqa: F401
from .queue_cases import KINDS, case, check_as_good_as_torch, on, truth

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture
def _small_tiles(monkeypatch):
    """Tiles small enough that rows, queue and runs span several, and that programs share the tiles of a block."""
    for name in ("forward_config", "backward_config"):
        monkeypatch.setattr(tiling, name, lambda *_: tiling.Config(32, 16, 4, 1))
    for name in ("BLOCK", "LABELS", "LOSSES"):
        monkeypatch.setattr(tiling, name, 16)
    monkeypatch.setattr(tiling, "SPLIT_TILES", 2)


def moved(inputs):
    """q, k, queue and options of a case on the device of the kernels."""
    *tensors, options = inputs
    return *(x.to(DEVICE, copy=True) for x in tensors), on(DEVICE, options)


def check(kind, n, entries, d, tau, dtype, length=1.0):
    eps = torch.finfo(dtype).eps + EXTRA
    inputs = case(kind, n, entries, d, dtype, length=length)
    check_as_good_as_torch("triton", *inputs, tau, eps=eps, device=DEVICE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("n", "entries", "d", "tau", "dtype"),
    [
        (1, 1, 16, 0.5, torch.float32),
        (3, 0, 1, 0.1, torch.float16),
        (63, 37, 3, 0.01, torch.float32),
        (37, 130, 100, 0.5, torch.float16),
    ],
)
def test_loss_with_shipped_tiles(kind, n, entries, d, tau, dtype):
    check(kind, n, entries, d, tau, dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("n", "entries", "tau", "length"), [(70, 96, 0.07, 1.0), (33, 113, 0.012, 1.0), (20, 90, 0.2, 30.0)]
)
@pytest.mark.usefixtures("_small_tiles")
def test_loss_over_many_tiles(kind, n, entries, tau, length):
    check(kind, n, entries, 24, tau, torch.float32, length)


@pytest.mark.parametrize("tau", [0.07, 0.012])
def test_loss_with_polynomial_exponentials(monkeypatch, tau):
    monkeypatch.setattr(tiling, "forward_config", lambda *_: tiling.Config(32, 64, 4, 1, polynomial=5))
    inputs = case("one group", 40, 200, 24, torch.float32)
    check_as_good_as_torch("triton", *inputs, tau, eps=1e-4, device=DEVICE)


LARGEST = 2**63 - 1


@pytest.mark.parametrize(("rows", "entries"), [(0, 5), (4, 0), (5, 1), (300, 140), (9, 131)])
@pytest.mark.parametrize(
    "groups", [None, [0, 1, LARGEST], [-(2**63), -5, -1], [-2, 0, 7, LARGEST - 1, LARGEST]]
)
@pytest.mark.parametrize("subgroups", [None, [-9, -1, 0, 1, LARGEST]])
@pytest.mark.parametrize("any_weight", [False, True])
def test_sorted_queue_is_that_of_the_other_backend(rows, entries, groups, subgroups, any_weight):
    """Order, runs and places to the last index, with ids at the ends of the range, on both sides of empty slots."""
    g = torch.Generator().manual_seed(rows + entries)

    def ids(choices, count):
        return (
            None
            if choices is None
            else torch.tensor(choices)[torch.randint(len(choices), (count,), generator=g)]
        )

    labels = Labels(
        ids(groups and [*groups, 3], rows),
        ids(groups, entries),
        ids(subgroups and [*subgroups, 3], rows),
        ids(subgroups, entries),
        None if subgroups is None else torch.rand(entries, generator=g),
        torch.rand(entries, generator=g) if any_weight else None,
    )
    q, queue = torch.randn(rows, 20, generator=g), torch.randn(entries, 20, generator=g)
    wanted, masses = chunked.columns(q, queue, labels)
    moved = Labels(*(None if x is None else x.to(DEVICE) for x in labels))
    found, found_masses = sorting.columns(q.to(DEVICE), queue.to(DEVICE), moved)
    assert torch.equal(found.filled.cpu(), wanted.filled)
    assert torch.equal(found.keys[:, :20].cpu(), wanted.keys)
    assert torch.equal(found.place.cpu(), wanted.place)
    torch.testing.assert_close(found.bound.cpu(), wanted.bound)
    for kind, place in enumerate(wanted.place):
        used = place[place >= 0]
        torch.testing.assert_close(
            found.sums[kind, used.to(DEVICE), :20].cpu(),
            wanted.sums[kind, used],
            rtol=1e-5,
            atol=1e-5 + EXTRA,
        )
        torch.testing.assert_close(found_masses[kind, used.to(DEVICE)].cpu(), masses[kind, used])


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_norm_of_the_queue_shows_bad_values_and_does_not_overflow(bad):
    queue = torch.ones(9, 3, device=DEVICE)
    queue[5] = 1e30
    none = Labels(None, None, None, None, None, None)
    columns, _ = sorting.columns(queue, queue, none)
    assert columns.bound.item() == pytest.approx(3**0.5 * 1e30, rel=1e-5)
    queue[2, 1] = bad
    columns, _ = sorting.columns(queue, queue, none)
    assert not columns.bound.isfinite()


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32])
def test_ids_of_any_integer_type(dtype):
    q, k, queue, options = moved(case("dense", 20, 40, 8, torch.float32))
    names = ("groups", "queue_groups", "subgroups", "queue_subgroups")
    ids = {name: options[name].div(1000, rounding_mode="floor").clamp_min(0) for name in names}
    losses = [
        queue_info_nce(q, k, queue, **options | {name: x.to(t) for name, x in ids.items()}, backend="triton")
        for t in (torch.int64, dtype)
    ]
    assert losses[0].item() == losses[1].item()


@pytest.mark.usefixtures("_small_tiles")
@pytest.mark.parametrize("filled", [0, 1, 16, 31, 32, 33, 80])
def test_any_number_of_filled_slots(filled):
    """The end of the filled part falls before, on and behind the edges of tiles and of programs' shares."""
    q, k, queue, options = case("one group", 10, 80, 8, torch.float32)
    options["queue_groups"][torch.randperm(80)[filled:]] = -1
    check_as_good_as_torch("triton", q, k, queue, options, 0.2, eps=2**-23 + EXTRA, device=DEVICE)


@pytest.mark.parametrize("entries", [1, 16, 17, 300, 700])
def test_sums_of_runs_that_span_blocks(entries, monkeypatch):
    """Runs inside a block, of a whole block, of many blocks, and of more blocks than one step reads."""
    monkeypatch.setattr(tiling, "BLOCK", 16)
    keys, weight = torch.randn(entries, 64, device=DEVICE), torch.rand(2, entries, device=DEVICE)
    ids = torch.stack([(torch.rand(entries) ** 3 * 9).long().sort().values, torch.arange(entries) // 290])
    ids = ids.to(DEVICE)
    head = torch.searchsorted(ids, ids)
    sums, masses = runs.run_sums(keys, weight, head)
    for kind in range(2):
        for first in head[kind].unique():
            own = head[kind] == first
            wanted = (weight[kind, own, None].double() * keys[own].double()).sum(0)
            torch.testing.assert_close(sums[kind, first].double(), wanted, rtol=1e-5, atol=1e-5 + EXTRA)
            mass = weight[kind, own].double().sum()
            torch.testing.assert_close(masses[kind, first].double(), mass, rtol=1e-5, atol=0)


@pytest.mark.usefixtures("_small_tiles")
def test_long_keys_take_the_running_maximum_and_short_ones_plain_sums():
    """Both give the same sums if both are safe; the long queue would overflow plain sums."""
    q, k, queue, _ = moved(case("plain", 12, 70, 8, torch.float32))
    # The bound is the norm of the longest key, also of one that no row is similar to.
    z = torch.nn.functional.normalize(q)
    away = torch.linalg.svd(z[:7]).Vh[-1]
    one = queue_info_nce(
        q[:7], k[:7], torch.cat([queue, 60 * away[None]]), temperature=0.05, backend="triton"
    )
    other = queue_info_nce(
        q[:7], k[:7], torch.cat([queue, 0 * away[None]]), temperature=0.05, backend="triton"
    )
    torch.testing.assert_close(one, other, rtol=2e-5, atol=1e-6)
    assert queue_info_nce(q, k, 60 * queue, temperature=0.05, backend="triton").isfinite()


@pytest.mark.parametrize("check", [edges.long_keys, edges.temperatures_that_are_not_positive])
def test_ends_of_the_number_range(check):
    check("triton", DEVICE)


def test_keys_too_long_for_float16_are_not_hidden():
    q, k, queue, _ = moved(case("plain", 3, 5, 16, torch.float16))
    assert queue_info_nce(q, k, queue.float() * 1000, backend="triton").isfinite()
    assert not queue_info_nce(q, k, queue.float() * 1e6, backend="triton").isfinite()
    assert queue_info_nce(q, k, queue.float() * 1e6, backend="chunked").isfinite()


@pytest.mark.usefixtures("_small_tiles")
def test_small_shares_of_many_entries_add_up_in_float16():
    """Each entry has 3e-8 of the softmax, half of the smallest number of float16."""
    q = torch.zeros(1, 16, dtype=torch.float16)
    q[0, 0] = 1.0
    queue = torch.zeros(2000, 16, dtype=torch.float16)
    queue[:, 0], queue[:, 1] = -0.73, 0.68

    def gradient(backend, device, dtype):
        leaf = q.to(device, dtype, copy=True).requires_grad_()
        entries = queue.to(device, dtype)
        loss = queue_info_nce(leaf, q.to(device, dtype), entries, temperature=0.1, backend=backend)
        return torch.autograd.grad(loss, leaf)[0].cpu().double()

    exact = gradient("reference", "cpu", torch.float64)
    torch.testing.assert_close(gradient("triton", DEVICE, torch.float16), exact, rtol=0.02, atol=1e-6)


def test_results_do_not_vary():
    q, k, queue, options = moved(case("dense", 40, 70, 16, torch.float32))
    first, second = (
        loss_and_gradients(
            lambda a, b, t: queue_info_nce(a, b, queue, **options, temperature=t, backend="triton"), q, k, 0.1
        )
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("where", ["q", "queue"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.usefixtures("_small_tiles")
def test_bad_values_are_not_hidden_and_unused_ones_may_be_anything(where, bad):
    q, k, queue, options = moved(case("dense", 20, 40, 4, torch.float32))
    {"q": q, "queue": queue}[where][3, 1] = bad
    q.requires_grad_()
    loss = queue_info_nce(q, k, queue, **options, backend="triton")
    loss.backward()
    assert not loss.isfinite()
    assert q.grad[3].isnan().all()
    q.grad = None
    options["groups" if where == "q" else "queue_groups"][3] = -1
    loss = queue_info_nce(q, k, queue, **options, backend="triton")
    loss.backward()
    assert loss.isfinite()
    assert q.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["plain", "nobody"])
def test_empty_input_and_keys_without_gradient(kind):
    q, k, queue, options = moved(case(kind, 0, 6, 4, torch.float32))
    q.requires_grad_()
    loss = queue_info_nce(q, k, queue, **options, backend="triton")
    loss.backward()
    assert loss.item() == 0
    inputs = case(kind, 5, 6, 4, torch.float32)
    q, k, queue, options = moved(inputs)
    q.requires_grad_()
    queue_info_nce(q, k, queue, **options, temperature=0.3, backend="triton").backward()
    torch.testing.assert_close(
        q.grad.double().cpu(), truth(*inputs, 0.3)[1], rtol=1e-5 + EXTRA, atol=1e-6 + EXTRA
    )
    assert k.grad is None


@pytest.mark.parametrize("key_gradient", [True, False])
def test_operator_registration(key_gradient):
    """Shapes and dtypes of the registered fake, with widths that are padded."""
    q, k, queue, options = moved(case("dense", 12, 15, 5, torch.float32))
    names = (
        "groups",
        "queue_groups",
        "subgroups",
        "queue_subgroups",
        "same_weight",
        "any_weight",
        "row_weights",
    )
    temperature = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    labels = [options[name] for name in names]
    torch.library.opcheck(
        torch.ops.pscl_kernels.queue_info_nce.default,
        (
            q.requires_grad_(),
            k.requires_grad_(key_gradient),
            queue,
            *labels,
            False,
            temperature,
            "",
            "triton",
        ),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.usefixtures("_small_tiles")
def test_losses_are_those_of_the_other_backend(weighted, normalise):
    """Shares of very different size, several blocks of rows, and rows that take no part, whose weights are NaN."""
    n = 40
    g = torch.Generator().manual_seed(0)
    shares = torch.randn(3, n, generator=g) * 200
    positive, target = torch.randn(2, n, generator=g)
    mass = 1 + torch.rand(n, generator=g)
    present = torch.rand(n, generator=g) < 0.7
    weights = torch.where(present, torch.rand(n, generator=g), torch.nan) if weighted else None
    exact = torch.logsumexp(shares.double() * math.log(2), 0) / math.log(2)

    def results(function, lse, bound=1.0, present=present):
        rows = Rows(*(x.to(DEVICE) for x in (lse, positive, target, mass)))
        bound, count = torch.tensor(bound, device=DEVICE), present.sum().to(DEVICE)
        own = None if weights is None else weights.to(DEVICE)
        return [x.cpu() for x in function(rows, bound, present.to(DEVICE), own, count, normalise)]

    wanted = results(chunked.losses, exact.float()[None])
    for ours, other in zip(results(triton_losses, shares), wanted, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-5)
    # An infinite entry shows in the loss, but not if nobody takes part.
    assert not results(triton_losses, shares, torch.inf)[0].isfinite()
    nobody = results(triton_losses, shares, torch.inf, torch.zeros(n, dtype=torch.bool))
    assert nobody[0] == 0
    assert nobody[1].eq(0).all()
