"""Templates and matches against the rules of the method, written out one by one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pscl_hpc.config import PsclSimclrConfig
from pscl_hpc.methods.sampling import choose_templates, match_templates


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
    assert chosen[0, 2].eq(-1).all(), "a class without pure cells has no templates"
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


def test_more_templates_than_cells() -> None:
    shares = torch.ones(1, 1, 3)
    chosen = choose_templates(shares, torch.ones(1, 3, dtype=torch.bool), 8, config(), generators())
    assert sorted(chosen[0].tolist()) == [0, 1, 2]


def test_released_rule_overflows_into_other_cells() -> None:
    """The behaviour that the default rule mends: a rare class takes cells that are not its own."""
    shares = torch.zeros(1, 2, 10)
    shares[0, 0, 2:] = 1.0
    shares[0, 1, :2] = 1.0
    paired = torch.ones(1, 10, dtype=torch.bool)
    chosen = choose_templates(shares, paired, 4, config(template_rule="released"), generators()).view(2, 4)
    assert set(chosen[0].tolist()) <= set(range(2, 10))
    assert {0, 1} <= set(chosen[1].tolist())
    assert len(set(chosen[1].tolist())) == 4
    assert not set(chosen[0].tolist()) & set(chosen[1].tolist())


def brute_force(
    templates: torch.Tensor, chosen: torch.Tensor, cells: torch.Tensor, paired: torch.Tensor, cosine: bool
) -> torch.Tensor:
    found = torch.full(chosen.shape, -1)
    for image in range(len(cells)):
        t, c = templates[image].double(), cells[image].double()
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
    cells=st.integers(1, 30),
    matching=st.sampled_from(["cosine", "dot"]),
    seed=st.integers(0, 10_000),
)
def test_matching_is_strict_greedy(batch: int, count: int, cells: int, matching: str, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    t = torch.randn(batch, count, 8, generator=random)
    c = torch.randn(batch, cells, 8, generator=random) * torch.rand(batch, cells, 1, generator=random)
    chosen = torch.rand(batch, count, generator=random) < 0.8
    paired = torch.rand(batch, cells, generator=random) < 0.8
    found = match_templates(t, chosen, c, paired, config(matching=matching))
    assert torch.equal(found, brute_force(t, chosen, c, paired, matching == "cosine"))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_released_exclusion_repeats_cells_only_where_similarities_are_negative(sign: float) -> None:
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
