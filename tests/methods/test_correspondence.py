"""Pairs of patches against brute force."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pscl_hpc.config import ViewConfig
from pscl_hpc.methods.common import correspondence
from pscl_hpc.methods.common.correspondence import match_patches, most_similar_patches
from pscl_hpc.views import draw_geometry, view_to_source


def maps(batch: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(3)
    query, key = (torch.randn(batch, 6, height, width, generator=random) for _ in range(2))
    return query, key


@pytest.mark.parametrize("at_once", [1, 1 << 24])
def test_feature_rule_equals_brute_force(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(correspondence, "_SIMILARITIES_AT_ONCE", at_once)
    query, key = maps(3, 5, 7)
    found = most_similar_patches(query, key)
    for image in range(3):
        for patch in range(35):
            q = query[image, :, patch // 7, patch % 7].double()
            values = [
                float(F.cosine_similarity(q, key[image, :, other // 7, other % 7].double(), dim=0))
                for other in range(35)
            ]
            assert int(found[image, patch]) == max(range(35), key=lambda j: values[j])


def test_feature_rule_takes_the_first_of_equals_and_accepts_zero_vectors() -> None:
    query, key = maps(1, 2, 3)
    key[..., 1, 2] = key[..., 0, 1]
    found = most_similar_patches(query, key)
    assert 5 not in found.tolist()[0]
    assert bool((most_similar_patches(query, torch.ones_like(key)) == 0).all())
    assert bool((most_similar_patches(query, torch.zeros_like(key)) == 0).all())


def test_geometric_pairs_show_the_same_material() -> None:
    height, width = 8, 12
    geometry = draw_geometry(20, ViewConfig(), torch.Generator().manual_seed(1))
    query, key = maps(20, height, width)
    matches = match_patches("geometric", geometry, query, key)
    assert matches.query.shape == matches.key.shape == matches.valid.shape == (20, height * width)
    share = float(matches.valid.float().mean())
    assert 0.6 < share < 1.0, "some patches of view k repeat others"
    # Centres of the pair in the image, in patches. The grid is turned with the image, so that rows and columns stay
    # true.
    y, x = (matches.key // width).double(), (matches.key % width).double()
    source_y, source_x = view_to_source(geometry, y, x, height, width)
    far_y = (source_y - matches.query // width).abs()[matches.valid]
    far_x = (source_x - matches.query % width).abs()[matches.valid]
    assert float(torch.stack((far_y, far_x)).max()) < 1.0
    # No patch of view q appears twice: the pairs of an image are a one-to-one assignment.
    for image in range(20):
        used = matches.query[image][matches.valid[image]].tolist()
        assert len(used) == len(set(used))


def test_all_pairs_of_the_feature_rule_are_valid_and_start_in_view_q() -> None:
    query, key = maps(2, 3, 4)
    geometry = draw_geometry(2, ViewConfig(), torch.Generator().manual_seed(1))
    matches = match_patches("feature", geometry, query, key)
    assert bool(matches.valid.all())
    assert matches.query.tolist() == [list(range(12))] * 2
    assert torch.equal(matches.key, most_similar_patches(query, key))


def test_maps_of_different_grids_are_a_programming_error() -> None:
    query, key = maps(2, 3, 4)
    geometry = draw_geometry(2, ViewConfig(), torch.Generator())
    with pytest.raises(ValueError, match=r"\(2, 6, 3, 4\).*\(2, 6, 3, 3\)"):
        match_patches("feature", geometry, query, key[..., :-1])
