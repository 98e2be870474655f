"""The queue loss against its definition, its oracle and plain torch."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from pscl_kernels import queue_info_nce
from pscl_kernels.queue_info_nce import chunked

from .cases import loss_and_gradients
from .queue_cases import KINDS, by_hand, case, check_as_good_as_torch, target_matrix, truth
from .ranks import compare_queue_ranks_with_oracle


@pytest.fixture
def _poison():
    """Uninitialised memory is NaN, so that its use shows in the results."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "entries", "d"), [(1, 1, 3), (2, 0, 1), (7, 9, 4)])
def test_oracle_is_the_definition(kind, n, entries, d):
    q, k, queue, options = case(kind, n, entries, d)
    loss = queue_info_nce(q, k, queue, **options, temperature=0.3, backend="reference")
    assert loss.item() == pytest.approx(by_hand(q, k, queue, options, 0.3), rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("kind", ["plain", "dense", "normalised", "mostly absent"])
@pytest.mark.parametrize(("tau", "length"), [(0.5, 1.0), (0.012, 3.0)])
def test_gradcheck(backend, kind, tau, length):
    q, k, queue, options = case(kind, 6, 11, 3, length=length)
    q, k = (x / x.norm(dim=1, keepdim=True) for x in (q, k))
    temperature = torch.tensor(tau, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(
        lambda a, b, t: queue_info_nce(a, b, queue, **options, temperature=t, backend=backend),
        (q.requires_grad_(), k.requires_grad_(), temperature),
        eps=1e-7,
        atol=1e-5 / tau,
    )


def test_subgroups_without_groups_and_both_weights():
    """All rows and entries are of one group, which is not that of a subgroup."""
    q, k, queue, options = case("image", 9, 14, 5)
    options["any_weight"] = torch.linspace(0.1, 0.9, 14)
    losses = [
        queue_info_nce(q, k, queue, **options, temperature=0.3, backend=backend)
        for backend in ("reference", "chunked")
    ]
    assert losses[0].item() == pytest.approx(by_hand(q, k, queue, options, 0.3), rel=1e-12)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=0)


@pytest.mark.usefixtures("_poison")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("n", "entries", "d", "tau", "length"),
    [
        (1, 1, 16, 0.5, 1.0),
        (3, 0, 3, 0.1, 1.0),
        (63, 97, 1, 0.5, 1.0),
        (97, 63, 65, 0.01, 1.0),
        (130, 301, 100, 0.2, 40.0),
        (500, 1000, 64, 0.07, 1.0),
    ],
)
def test_chunked_equals_oracle_in_float64(kind, n, entries, d, tau, length, monkeypatch):
    monkeypatch.setattr(chunked, "TILE_CPU", 96)
    q, k, queue, options = case(kind, n, entries, d, length=length)
    ours = loss_and_gradients(
        lambda a, b, t: queue_info_nce(a, b, queue, **options, temperature=t, backend="chunked"), q, k, tau
    )
    for mine, true in zip(ours, truth(q, k, queue, options, tau), strict=True):
        scale = 1e-12 * length / tau * max(true.abs().max().item(), 1.0) if true.numel() else 0.0
        torch.testing.assert_close(mine, true, rtol=1e-10, atol=scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["plain", "dense", "normalised", "mostly absent", "nobody"])
@pytest.mark.parametrize(
    ("n", "entries", "d", "tau", "length"),
    [(1, 7, 64, 0.5, 1.0), (63, 40, 16, 0.01, 1.0), (57, 100, 100, 0.1, 8.0), (70, 160, 64, 1.0, 1.0)],
)
def test_chunked_is_as_good_as_torch_at_low_precision(kind, dtype, n, entries, d, tau, length, monkeypatch):
    monkeypatch.setattr(chunked, "TILE_CPU", 50)
    check_as_good_as_torch("chunked", *case(kind, n, entries, d, dtype, length=length), tau, eps=2**-24)


def test_plain_case_is_moco():
    """Without labels: cross-entropy of the positive against the queue."""
    q, k, queue, _ = case("plain", 20, 50, 8)
    z, other = (torch.nn.functional.normalize(x, dim=1) for x in (q, k))
    logits = torch.cat([(z * other).sum(1, keepdim=True), z @ queue.T], 1) / 0.07
    wanted = torch.nn.functional.cross_entropy(logits, torch.zeros(20, dtype=torch.int64))
    for backend in ("reference", "chunked"):
        loss = queue_info_nce(q, k, queue, temperature=0.07, backend=backend)
        torch.testing.assert_close(loss, wanted)


def test_labelled_case_is_cross_entropy_with_soft_targets():
    """PSCL-MoCo: class prototypes with weights that fall with age, rows weighted, targets not normalised."""
    n, images, classes = 24, 10, 4
    q, k, queue, _ = case("plain", n, images * classes, 8)
    age = torch.arange(images).repeat_interleave(classes) + 1.0
    options = {
        "groups": torch.arange(n) % classes,
        "queue_groups": torch.arange(images * classes) % classes,
        "subgroups": torch.arange(n) // 8,
        "queue_subgroups": (torch.arange(images) % 4).repeat_interleave(classes),
        "same_weight": 0.5**age,
        "any_weight": 0.2**age,
        "row_weights": torch.rand(n),
    }
    z, other = (torch.nn.functional.normalize(x, dim=1) for x in (q, k))
    logits = torch.cat([(z * other).sum(1, keepdim=True), z @ queue.T], 1) / 0.5
    targets = torch.cat([torch.ones(n, 1), target_matrix(options, n, len(queue))], 1)
    assert targets.max() > 0.5
    wanted = -(options["row_weights"][:, None] * targets * torch.log_softmax(logits, 1)).sum(1).mean()
    for backend in ("reference", "chunked"):
        loss = queue_info_nce(q, k, queue, **options, temperature=0.5, backend=backend)
        torch.testing.assert_close(loss, wanted)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 20),
    entries=st.integers(0, 30),
    seed=st.integers(0, 2**16),
    kind=st.sampled_from(KINDS),
    tau=st.sampled_from([0.01, 0.2, 1.0]),
)
def test_order_of_rows_and_entries_does_not_matter(n, entries, seed, kind, tau):
    q, k, queue, options = case(kind, n, entries, 6, seed=seed)
    loss = queue_info_nce(q, k, queue, **options, temperature=tau)
    generator = torch.Generator().manual_seed(seed)
    row, entry = torch.randperm(n, generator=generator), torch.randperm(entries, generator=generator)
    shuffled = {
        name: value
        if isinstance(value, bool)
        else value[row if name in ("groups", "subgroups", "row_weights") else entry]
        for name, value in options.items()
    }
    other = queue_info_nce(q[row], k[row], queue[entry], **shuffled, temperature=tau)
    torch.testing.assert_close(loss, other, rtol=1e-9, atol=1e-11)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**16), kind=st.sampled_from(["dense", "normalised", "mostly absent", "one group"])
)
def test_names_of_groups_do_not_matter_and_empty_slots_are_no_columns(seed, kind):
    q, k, queue, options = case(kind, 13, 21, 6, seed=seed)
    loss = queue_info_nce(q, k, queue, **options)
    generator = torch.Generator().manual_seed(seed)
    names = torch.randperm(6001, generator=generator)
    renamed = dict(options)
    for name in ("groups", "queue_groups", "subgroups", "queue_subgroups"):
        if name in options:
            ids = options[name]
            renamed[name] = torch.where(ids < 0, ids * 3 - 1, (names[ids.clamp_min(0)] + 1) << 40)
    torch.testing.assert_close(queue_info_nce(q, k, queue, **renamed), loss, rtol=1e-9, atol=1e-11)
    used = options["queue_groups"] >= 0
    of_queue = ("queue_groups", "queue_subgroups", "same_weight", "any_weight")
    kept = {name: value[used] if name in of_queue else value for name, value in options.items()}
    torch.testing.assert_close(queue_info_nce(q, k, queue[used], **kept), loss, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_absent_rows_and_empty_slots_may_hold_anything(backend):
    q, k, queue, options = case("dense", 30, 40, 8)
    keep, used = torch.arange(30) % 5 != 0, torch.arange(40) % 3 != 0
    of_queue = ("queue_groups", "queue_subgroups", "same_weight", "any_weight")
    expected = queue_info_nce(
        q[keep],
        k[keep],
        queue[used],
        **{name: value[used if name in of_queue else keep] for name, value in options.items()},
        backend=backend,
    )
    dirty = {
        name: torch.where(used if name in of_queue else keep, value, -7 if "weight" not in name else math.nan)
        for name, value in options.items()
    }
    q, k = (torch.where(keep[:, None], x, math.nan).requires_grad_() for x in (q, k))
    queue[~used] = math.nan
    loss = queue_info_nce(q, k, queue, **dirty, backend=backend)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    for x in (q, k):
        assert x.grad[~keep].eq(0).all()
        assert x.grad[keep].isfinite().all()
        assert x.grad[keep].ne(0).any(1).all()


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize(("n", "entries"), [(0, 5), (3, 5), (0, 0)])
def test_nobody_takes_part(backend, n, entries):
    q, k, queue, options = case("nobody", n, entries, 4)
    q, k = q.requires_grad_(), k.requires_grad_()
    loss = queue_info_nce(q, k, queue, **options, backend=backend)
    loss.backward()
    assert loss.item() == 0
    assert q.grad.eq(0).all()
    assert k.grad.eq(0).all()


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_nobody_takes_part_against_an_infinite_entry(backend):
    q, k = torch.ones(5, 3), torch.ones(5, 3)
    queue = torch.ones(7, 3)
    queue[2, 1] = torch.inf
    labels = {"groups": torch.full((5,), -1), "queue_groups": torch.zeros(7, dtype=torch.int64)}
    for result in loss_and_gradients(
        lambda a, b, t: queue_info_nce(a, b, queue, **labels, temperature=t, backend=backend), q, k, 0.2
    ):
        assert result.eq(0).all()


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("kind", ["plain", "all empty"])
def test_nothing_to_distinguish_from_costs_nothing(backend, kind):
    q, k, queue, options = case(kind, 5, 0 if kind == "plain" else 6, 4)
    loss = queue_info_nce(q.requires_grad_(), k, queue, **options, backend=backend)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-14)
    assert q.grad.abs().max() < 1e-14


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["q", "k", "queue"])
@pytest.mark.parametrize("kind", ["plain", "dense"])
def test_bad_values_are_not_hidden(bad, where, kind):
    q, k, queue, options = case(kind, 20, 30, 4, torch.float32)
    {"q": q, "k": k, "queue": queue}[where][3, 1] = bad
    q.requires_grad_()
    loss = queue_info_nce(q, k, queue, **options, backend="chunked")
    loss.backward()
    assert not loss.isfinite()
    assert q.grad[3].isnan().all()


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_infinitely_unlike_keys_are_not_hidden(backend):
    """Their exponentials are zero, and the sums without them finite."""
    q, queue = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.6, 0.8], [-math.inf, 0.5]])
    assert queue_info_nce(q, q, queue[:1], backend=backend).isfinite()
    assert not queue_info_nce(q, q, queue, backend=backend).isfinite()


def test_zero_rows_are_finite():
    q, k, queue, options = case("dense", 9, 12, 4)
    q[2] = k[5] = 0
    ours = loss_and_gradients(
        lambda a, b, t: queue_info_nce(a, b, queue, **options, temperature=t, backend="chunked"), q, k, 0.5
    )
    for mine, true in zip(ours, truth(q, k, queue, options, 0.5), strict=True):
        assert mine.isfinite().all()
        torch.testing.assert_close(mine, true)


def test_memory_is_bounded_by_the_tile(monkeypatch):
    """No allocation as large as a (N, Q) matrix, and a small peak in all."""
    n, entries, d, tile = 1500, 2000, 16, 128
    monkeypatch.setattr(chunked, "TILE_CPU", tile)
    q, k, queue, options = case("dense", n, entries, d, torch.float32)
    q.requires_grad_()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        queue_info_nce(q, k, queue, **options, backend="chunked").backward()
    sizes = [e.nbytes() for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert max(sizes) <= 2 * entries * d * 8
    assert max(itertools.accumulate(sizes)) < 0.1 * n * entries * 4


@pytest.mark.parametrize("key_gradient", [True, False])
def test_compiles_without_graph_breaks(key_gradient):
    q, k, queue, options = case("dense", 33, 20, 8, torch.float32)
    q, k = q.requires_grad_(), k.requires_grad_(key_gradient)

    def step(a, b):
        return 2 * queue_info_nce(a * 1.5, b, queue, **options)

    expected = step(q, k)
    expected.backward()
    wanted = [x.grad for x in (q, k)]
    q.grad = k.grad = None
    loss = torch.compile(step, backend="aot_eager", fullgraph=True)(q, k)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(q.grad, wanted[0])
    assert (k.grad is None) == (not key_gradient)
    if key_gradient:
        torch.testing.assert_close(k.grad, wanted[1])


@pytest.mark.parametrize("kind", ["plain", "dense"])
def test_operator_registration(kind):
    q, k, queue, options = case(kind, 12, 15, 4)
    names = (
        "groups",
        "queue_groups",
        "subgroups",
        "queue_subgroups",
        "same_weight",
        "any_weight",
        "row_weights",
    )
    labels = [options.get(name) for name in names]
    labels[4:] = [x if x is None else x.double() for x in labels[4:]]
    temperature = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    arguments = (q.requires_grad_(), k.requires_grad_(), queue, *labels, False, temperature, "", "chunked")
    torch.library.opcheck(
        torch.ops.pscl_kernels.queue_info_nce.default,
        arguments,
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


def test_autocast_and_checkpointing_work_around_it():
    q, k, queue, options = case("dense", 40, 30, 8, torch.float32)
    q.requires_grad_()
    expected = queue_info_nce(q, k, queue, **options)
    expected.backward()
    wanted = q.grad.clone()
    q.grad = None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = torch.utils.checkpoint.checkpoint(
            lambda a, b: queue_info_nce(a, b, queue, **options), q, k, use_reentrant=False
        )
    loss.backward()
    assert loss.item() == expected.item()
    assert torch.equal(q.grad, wanted)


def test_two_ranks_add_up_to_one(tmp_path):
    compare_queue_ranks_with_oracle(2, tmp_path, "float64", ["reference", "chunked"], rtol=1e-10, atol=1e-12)


def test_keys_of_another_dtype_and_no_gradient_to_what_takes_none():
    q, k, queue, options = case("dense", 10, 12, 4)
    queue, weights = queue.requires_grad_(), options["any_weight"].requires_grad_()
    loss = queue_info_nce(q.half().requires_grad_(), k.half(), queue, **options)
    assert loss.dtype == torch.float32
    loss.backward()
    assert queue.grad is None
    assert weights.grad is None
    reference = queue_info_nce(q.half(), k.half(), queue, **options, backend="reference")
    assert reference.dtype == torch.float32
    assert loss.item() == pytest.approx(reference.item(), rel=1e-5)


def test_wrong_arguments():
    q, k, queue, options = case("dense", 4, 5, 3)

    def fails(names, *features, **changes):
        with pytest.raises(ValueError, match=names):
            queue_info_nce(*(features or (q, k, queue)), **{**options, **changes})

    fails("q and k", q, k[:3], queue)
    fails("q and k", q, k.float(), queue)
    fails("queue", q, k, queue[:, :2])
    fails("queue", q, k, queue.long())
    fails("groups and queue_groups", queue_groups=None)
    fails("subgroups and queue_subgroups", subgroups=None)
    fails("same_weight.*subgroups", subgroups=None, queue_subgroups=None)
    fails(r"queue_groups.*\(5,\)", queue_groups=torch.zeros(5))
    fails(r"subgroups.*\(4,\)", subgroups=torch.zeros(5, dtype=torch.int64))
    fails("any_weight", any_weight=torch.zeros(4))
    fails("row_weights", row_weights=torch.zeros(4, 1))
    fails("temperature", temperature=0.0)
    fails("temperature", temperature=torch.ones(1))
    fails("fast", backend="fast")
