"""Templates and matches against loops that implement the rules."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pscl_hpc.config import ViewConfig
from pscl_hpc.methods.common.sampling import choose_templates, match_templates
from pscl_hpc.methods.pscl_simclr import PsclSimclrConfig
from pscl_hpc.views import class_shares, draw_geometry, paired_patches, warp


def config(**changes: object) -> PsclSimclrConfig:
    return PsclSimclrConfig.model_validate(changes)


def generators(count: int = 1) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def test_templates_are_pure_paired_and_distinct() -> None:
    shares = torch.zeros(2, 3, 20)
    shares[0, 0, :8], shares[0, 1, 8:16], shares[0, 2, 16:] = 1.0, 0.97, 0.6
    shares[1, 2] = 1.0
    paired = torch.ones(2, 20, dtype=torch.bool)
    paired[0, 0] = False
    chosen = choose_templates(shares, paired, 4, config(purity=0.95), generators(2)).view(2, 3, 4)
    assert set(chosen[0, 0].tolist()) <= set(range(1, 8))
    assert set(chosen[0, 1].tolist()) <= set(range(8, 16))
    assert chosen[0, 2].eq(-1).all(), "a class without pure patches has no templates"
    assert chosen[1, :2].eq(-1).all(), "an absent class has no templates"
    for row in (chosen[0, 0], chosen[0, 1], chosen[1, 2]):
        assert len(set(row.tolist())) == 4


def test_a_rare_class_has_fewer_templates() -> None:
    shares = torch.zeros(1, 2, 10)
    shares[0, 0, 2:] = 1.0
    shares[0, 1, :2] = 1.0
    chosen = choose_templates(shares, torch.ones(1, 10, dtype=torch.bool), 4, config(), generators()).view(
        2, 4
    )
    assert sorted(chosen[1].tolist()) == [-1, -1, 0, 1]


def test_more_templates_than_patches() -> None:
    shares = torch.ones(1, 1, 3)
    chosen = choose_templates(shares, torch.ones(1, 3, dtype=torch.bool), 8, config(), generators())
    assert sorted(chosen[0].tolist()) == [0, 1, 2]


@pytest.mark.parametrize("size", [60, 94])
def test_a_patch_of_one_class_alone_is_pure_enough_for_the_highest_purity(size: int) -> None:
    geometry = draw_geometry(6, ViewConfig(size=(4 * size, 4 * size)), torch.Generator().manual_seed(0))
    labels = torch.zeros(6, 2, 4 * size, 4 * size)
    labels[:, 0] = 1
    shares = class_shares(warp(labels, geometry), geometry, size, size, antialias=True).flatten(2)
    assert bool((shares[:, 0] < 1).any()), "rounded weights do not always add up to 1"
    paired = paired_patches(geometry, size, size)
    chosen = choose_templates(shares, paired, size * size, config(purity=1.0), generators(6)).view(6, 2, -1)
    assert torch.equal((chosen[:, 0] >= 0).sum(dim=1), paired.sum(dim=1))
    assert chosen[:, 1].eq(-1).all()


def test_the_highest_purity_takes_no_mixed_patch() -> None:
    shares = torch.tensor([[[1.0, 0.999, 0.9999]]])
    chosen = choose_templates(shares, torch.ones(1, 3, dtype=torch.bool), 3, config(purity=1.0), generators())
    assert sorted(chosen[0].tolist()) == [-1, -1, 0]


def test_released_rule_overflows_into_other_patches() -> None:
    """The behaviour that the default rule fixes: a rare class takes patches of other classes."""
    shares = torch.zeros(1, 2, 10)
    shares[0, 0, 2:] = 1.0
    shares[0, 1, :2] = 1.0
    paired = torch.ones(1, 10, dtype=torch.bool)
    chosen = choose_templates(shares, paired, 4, config(template_rule="released"), generators()).view(2, 4)
    assert set(chosen[0].tolist()) <= set(range(2, 10))
    assert {0, 1} <= set(chosen[1].tolist())
    assert len(set(chosen[1].tolist())) == 4
    assert not set(chosen[0].tolist()) & set(chosen[1].tolist())


@settings(deadline=None, max_examples=30)
@given(
    classes=st.integers(1, 4), count=st.integers(1, 5), patches=st.integers(5, 30), seed=st.integers(0, 999)
)
def test_released_templates_follow_the_rule(classes: int, count: int, patches: int, seed: int) -> None:
    """Labels of 0 to 255 plus U(0, 0.1); the largest label is subtracted from patches of earlier classes."""
    random = torch.Generator().manual_seed(seed)
    # Coarse steps, so that the noise only decides between equal labels.
    shares = torch.randint(0, 5, (2, classes, patches), generator=random).float() / 4
    paired = torch.rand(2, patches, generator=random) < 0.8
    chosen = choose_templates(shares, paired, count, config(template_rule="released"), generators(2)).view(
        2, classes, -1
    )
    for reference, generator in enumerate(generators(2)):
        noise = torch.rand((classes, patches), generator=generator).double()
        values = [[255 * float(s) for s in row] for row in shares[reference]]
        usable = [patch for patch in range(patches) if bool(paired[reference, patch])]
        largest = max((row[patch] for row in values for patch in usable), default=0.0)
        history = [0.0] * patches
        for of_class in range(classes):
            score = {
                patch: values[of_class][patch] + 0.1 * float(noise[of_class, patch]) + history[patch]
                for patch in usable
            }
            wanted = sorted(usable, key=lambda patch, score=score: -score[patch])[:count]
            found = [patch for patch in chosen[reference, of_class].tolist() if patch >= 0]
            assert found == wanted
            for patch in wanted:
                history[patch] -= largest


@settings(deadline=None, max_examples=30)
@given(count=st.integers(1, 8), patches=st.integers(1, 20), seed=st.integers(0, 999))
def test_released_matching_subtracts_the_largest_from_a_taken_patch(
    count: int, patches: int, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    t, c = torch.randn(1, count, 3, generator=random), torch.randn(1, patches, 3, generator=random)
    paired = torch.rand(1, patches, generator=random) < 0.8
    paired[0, 0] = True
    rule = config(exclusion="released", matching="dot")
    found = match_templates(t, torch.ones(1, count, dtype=torch.bool), c, paired, rule)[0].tolist()
    unit = torch.cat((t[0], torch.zeros(count, 1)), dim=1)
    similarity = (unit[:, :3].double() @ c[0].double().T).masked_fill(~paired, -torch.inf)
    largest = similarity.max()
    for template, patch in enumerate(found):
        assert float(similarity[template, patch]) >= float(similarity[template].max()) - 1e-5
        similarity[:, patch] -= largest


def brute_force(
    templates: torch.Tensor, chosen: torch.Tensor, patches: torch.Tensor, paired: torch.Tensor, cosine: bool
) -> torch.Tensor:
    found = torch.full(chosen.shape, -1)
    for image in range(len(patches)):
        t, c = templates[image].double(), patches[image].double()
        if cosine:
            t, c = torch.nn.functional.normalize(t, dim=-1), torch.nn.functional.normalize(c, dim=-1)
        free = paired[image].clone()
        for template in range(len(t)):
            if chosen[image, template] and bool(free.any()):
                similarity = torch.where(free, c @ t[template], -torch.inf)
                found[image, template] = best = int(similarity.argmax())
                free[best] = False
    return found


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 3),
    count=st.integers(1, 6),
    patches=st.integers(1, 30),
    matching=st.sampled_from(["cosine", "dot"]),
    seed=st.integers(0, 10_000),
)
def test_matching_is_strict_greedy(batch: int, count: int, patches: int, matching: str, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    t = torch.randn(batch, count, 8, generator=random)
    c = torch.randn(batch, patches, 8, generator=random) * torch.rand(batch, patches, 1, generator=random)
    chosen = torch.rand(batch, count, generator=random) < 0.8
    paired = torch.rand(batch, patches, generator=random) < 0.8
    found = match_templates(t, chosen, c, paired, config(matching=matching))
    assert torch.equal(found, brute_force(t, chosen, c, paired, matching == "cosine"))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_released_exclusion_repeats_patches_only_where_similarities_are_negative(sign: float) -> None:
    random = torch.Generator().manual_seed(2)
    t = torch.rand(1, 12, 8, generator=random) + 0.1
    c = sign * (torch.rand(1, 50, 8, generator=random) + 0.1)
    every = torch.ones(1, 12, dtype=torch.bool), torch.ones(1, 50, dtype=torch.bool)
    released = match_templates(t, every[0], c, every[1], config(exclusion="released"))
    strict = match_templates(t, every[0], c, every[1], config())
    assert strict.unique().numel() == 12
    if sign > 0:
        assert torch.equal(released, strict)
    else:
        assert released.unique().numel() < 12
