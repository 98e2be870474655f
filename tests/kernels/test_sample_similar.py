"""Similarity sampling against brute force."""

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from pscl_kernels import sample_similar
from pscl_kernels.sample_similar import bounded


@pytest.fixture(params=["bounds", "exact"], autouse=True)
def _first_pass(request, monkeypatch):
    """Both methods of `chunked`: with bfloat16 bounds, as on CPUs with fast bfloat16 products, and without."""
    monkeypatch.setattr(bounded, "is_fast", lambda: request.param == "bounds")


def by_hand(templates, patches, valid=None):
    """The definition with Python lists, for vectors whose similarities are exact."""
    batch, places, _ = patches.shape
    templates = templates.expand(batch, *templates.shape[-2:])
    out = []
    for b in range(batch):
        free = [valid is None or bool(valid[b, p]) for p in range(places)]
        out.append([])
        for t in templates[b].tolist():
            best, choice = None, -1
            for p in range(places):
                c = patches[b, p].tolist()
                norms = max(sum(v * v for v in t) ** 0.5, 1e-8) * max(sum(v * v for v in c) ** 0.5, 1e-8)
                s = sum(x * y for x, y in zip(t, c, strict=True)) / norms
                if free[p] and (best is None or s > best):
                    best, choice = s, p
            if choice >= 0:
                free[choice] = False
            out[-1].append(choice)
    return torch.tensor(out, dtype=torch.int64).reshape(batch, templates.shape[1])


def lattice(shape, generator):
    """Vectors with one or four entries of +-2^j: norms are powers of two, so that similarities are exact."""
    signs = torch.randint(0, 2, (*shape, 4), generator=generator) * 2 - 1
    one = torch.randint(0, 5, shape, generator=generator)  # 4: all entries, else a single one
    keep = (torch.arange(4) == one[..., None]) | (one == 4)[..., None]
    power = 2.0 ** torch.randint(-2, 3, (*shape, 1), generator=generator)
    return signs * keep * power


# Each example starts from its own seed, so that the fixture need not be set up again.
SETTINGS = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@SETTINGS
@given(
    batch=st.integers(1, 3),
    count=st.integers(0, 12),
    places=st.integers(0, 300),
    own=st.booleans(),
    masked=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_exact_ties_duplicates_and_shortage(batch, count, places, own, masked, seed):
    """Few distinct directions: almost every choice is a tie; many cases have fewer patches than templates."""
    generator = torch.Generator().manual_seed(seed)
    patches = lattice((batch, places), generator)
    templates = lattice((batch, count) if own else (count,), generator)
    valid = torch.rand(batch, places, generator=generator) < 0.4 if masked else None
    expected = by_hand(templates, patches, valid)
    for backend in ("reference", "chunked"):
        assert torch.equal(sample_similar(templates, patches, valid, backend=backend), expected)


@SETTINGS
@given(
    count=st.integers(1, 12),
    places=st.integers(1, 300),
    clusters=st.integers(1, 4),
    spread=st.sampled_from([0.0, 1e-6, 1e-3, 1e-1]),
    sign=st.sampled_from([1, -1]),
    seed=st.integers(0, 2**16),
)
def test_close_and_negative_similarities(count, places, clusters, spread, sign, seed):
    """Templates around few directions, patches around the same or the opposite ones: exact copies to loose clouds."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(clusters, 8, dtype=torch.float64, generator=generator)

    def cloud(number, factor):
        member = torch.randint(0, clusters, (number,), generator=generator)
        noise = torch.randn(number, 8, dtype=torch.float64, generator=generator)
        return factor * centre[member] + spread * noise

    templates, patches = cloud(count, 1), cloud(places, sign)[None]
    everywhere = torch.ones(1, places, dtype=torch.bool)
    taken = sample_similar(templates, patches, backend="chunked")
    assert_greedy(templates, patches, everywhere, taken, tolerance=1e-12)
    singles = sample_similar(templates.float(), patches.float(), backend="chunked")
    assert_greedy(templates.float(), patches.float(), everywhere, singles)
    for row in (taken[0], singles[0]):
        assert len(set(row[row >= 0].tolist())) == min(count, places)


@SETTINGS
@given(order=st.permutations(range(5)), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 2**16))
def test_images_do_not_influence_each_other(order, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(5, 150, 6, dtype=torch.float64, generator=generator)
    templates = torch.randn(5, 7, 6, dtype=torch.float64, generator=generator)
    taken = sample_similar(templates, patches, backend="chunked")
    index = torch.tensor(order)
    assert torch.equal(
        sample_similar(templates[index] * scale, patches[index], backend="chunked"), taken[index]
    )


def test_bounds_hold_and_are_given_up_where_they_do_not_tell():
    """No bound is off by more than the slack; nearly equal patches use the exact method and are correct as well."""
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(2, 1500, 48, generator=generator) * 10 ** torch.linspace(-6, 6, 1500)[:, None]
    t = torch.nn.functional.normalize(torch.randn(2, 20, 48, generator=generator), dim=2)
    exact = torch.nn.functional.normalize(patches.double(), dim=2, eps=1e-8) @ t.double().mT
    exact = torch.nn.functional.pad(exact, (0, 0, 0, -1500 % bounded.TILE), value=-2)
    exact = exact.view(2, -1, bounded.TILE, 20).amax(2).mT
    assert (bounded._bounds(t, patches, None).double() - exact).abs().max() <= bounded.SLACK
    assert bounded.sample_similar(t, patches, None) is not None
    alike = 1 + 1e-4 * torch.rand(2, 1500, 48, generator=generator)
    assert bounded.sample_similar(t, alike, None) is None
    everywhere = torch.ones(2, 1500, dtype=torch.bool)
    assert_greedy(t, alike, everywhere, sample_similar(t, alike, backend="chunked"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("places", "count", "width"), [(1, 1, 1), (129, 40, 3), (1000, 63, 64), (3001, 16, 100)]
)
def test_equals_brute_force(dtype, places, count, width):
    patches, templates = torch.randn(3, places, width).to(dtype), torch.randn(count, width).to(dtype)
    valid = torch.rand(3, places) < 0.7
    assert_greedy(templates, patches, valid, sample_similar(templates, patches, valid, backend="chunked"))


def assert_greedy(templates, patches, valid, taken, tolerance=2e-6):
    """Each choice is a free valid patch whose exact similarity is the greatest free one, to rounding."""
    t, c = (torch.nn.functional.normalize(x.double(), dim=-1, eps=1e-8) for x in (templates, patches))
    similarity = torch.einsum("btd,bpd->btp", t.expand(len(c), *t.shape[-2:]), c)
    for image in range(len(c)):
        free = valid[image].clone()
        for template, patch in enumerate(taken[image].tolist()):
            if patch < 0:
                assert not free.any()
                continue
            assert free[patch]
            best = similarity[image, template][free].max()
            assert similarity[image, template, patch] >= best - tolerance
            free[patch] = False


def test_correlated_templates_collide_and_stay_exact():
    """Templates of one class want the same patches; all similarities are negative in the second image."""
    base = torch.randn(1, 16)
    templates = base + 0.05 * torch.randn(64, 16)
    patches = torch.stack([base + 0.5 * torch.randn(700, 16), -base - 0.1 * torch.rand(700, 16)])
    taken = sample_similar(templates, patches, backend="chunked")
    assert torch.equal(taken, sample_similar(templates, patches, backend="reference"))
    assert all(len(set(row)) == 64 for row in taken.tolist())


def test_copies_are_taken_in_order_of_index():
    """Arbitrary directions, each stored ten times in different tiles: equal to the last bit, lowest index first."""
    patches = torch.randn(60, 24).repeat(10, 1)[None]
    templates = patches[0, :60].repeat(5, 1)
    taken = sample_similar(templates, patches, backend="chunked")[0]
    assert torch.equal(taken, torch.arange(300))


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_zero_and_nan_vectors(backend):
    patches = torch.tensor([[[-1.0, 0], [0, 0], [1, 0], [torch.nan, 0]]])
    templates = torch.tensor([[0.0, 0], [1, 0], [-1, 0], [1, 1], [1, 0]])
    taken = sample_similar(templates, patches, backend=backend)
    assert taken.tolist() == [[3, 2, 0, 1, -1]]
    finite = patches.nan_to_num(0.5)
    nan_template = torch.full((2, 2), torch.nan)
    assert sample_similar(nan_template, finite, backend=backend).tolist() == [[0, 1]]


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_no_patches_and_no_templates(backend):
    assert sample_similar(torch.ones(3, 2), torch.ones(2, 0, 2), backend=backend).tolist() == [[-1] * 3] * 2
    assert sample_similar(torch.ones(0, 2), torch.ones(2, 5, 2), backend=backend).shape == (2, 0)
    assert sample_similar(torch.ones(3, 2), torch.ones(0, 5, 2), backend=backend).shape == (0, 3)
    assert sample_similar(torch.ones(3, 0), torch.ones(2, 5, 0), backend=backend).tolist() == [[0, 1, 2]] * 2
    nothing_valid = torch.zeros(1, 5, dtype=torch.bool)
    assert sample_similar(torch.ones(2, 2), torch.ones(1, 5, 2), nothing_valid, backend=backend).tolist() == [
        [-1, -1]
    ]


def test_feature_maps_need_no_copy():
    maps = torch.randn(2, 16, 20, 19)
    patches = maps.flatten(2).transpose(1, 2)
    templates = torch.randn(9, 16)
    assert torch.equal(
        sample_similar(templates, patches),
        sample_similar(templates, patches.contiguous(), backend="reference"),
    )


def test_memory_stays_far_below_the_similarity_matrix():
    batch, places, count, width = 2, 20_000, 48, 32
    patches, templates = torch.randn(batch, places, width), torch.randn(count, width)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        sample_similar(templates, patches, backend="chunked")
    sizes = [e.nbytes() for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert max(itertools.accumulate(sizes)) < 0.2 * batch * places * count * 4


def test_no_gradient_and_compiles():
    patches, templates = torch.randn(2, 200, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    expected = sample_similar(templates, patches)
    assert not expected.requires_grad
    compiled = torch.compile(sample_similar, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(templates, patches), expected)


def test_wrong_arguments():
    patches = torch.randn(2, 5, 3)
    with pytest.raises(ValueError, match="patches"):
        sample_similar(torch.randn(2, 3), patches[0])
    with pytest.raises(ValueError, match="templates"):
        sample_similar(torch.randn(2, 4), patches)
    with pytest.raises(ValueError, match="templates"):
        sample_similar(torch.randn(3, 2, 3), patches)
    with pytest.raises(ValueError, match="templates and patches"):
        sample_similar(torch.randn(2, 3).half(), patches)
    with pytest.raises(ValueError, match="valid"):
        sample_similar(torch.randn(2, 3), patches, torch.ones(2, 5))
    elsewhere = torch.ones(2, 5, dtype=torch.bool, device="meta")
    with pytest.raises(ValueError, match=r"valid.* cpu.* meta"):
        sample_similar(torch.randn(2, 3), patches, elsewhere)
