"""The closed form against step-by-step flips, rotations, crops and index tables."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pscl_hpc.config import ViewConfig
from pscl_hpc.views import (
    ViewGeometry,
    class_shares,
    draw_geometry,
    paired_patches,
    partner_patches,
    view_to_source,
    warp,
)
from pscl_hpc.views.geometry import crop_on_grid


def geometry(flip: bool, turns: int, top: float, left: float, height: float, width: float) -> ViewGeometry:
    def tensor(value: float) -> torch.Tensor:
        return torch.tensor([value], dtype=torch.float64)

    return ViewGeometry(
        torch.tensor([flip]), torch.tensor([turns]), tensor(top), tensor(left), tensor(height), tensor(width)
    )


@st.composite
def geometries(draw: st.DrawFn) -> ViewGeometry:
    share = st.floats(0, 1)
    height, width = 1 - 0.4 * draw(share), 1 - 0.4 * draw(share)
    top, left = draw(share) * (1 - height), draw(share) * (1 - width)
    return geometry(draw(st.booleans()), draw(st.integers(0, 3)), top, left, height, width)


def turned_and_cropped(table: torch.Tensor, g: ViewGeometry, rows: int, cols: int) -> torch.Tensor:
    """Flip, rot90 and slice the last two dimensions, as the method is defined."""
    if bool(g.flip[0]):
        table = table.flip(-2)
    table = torch.rot90(table, int(g.turns[0]), (-2, -1))
    crop = crop_on_grid(g, rows, cols)
    top, left = int(crop.top[0]), int(crop.left[0])
    return table[..., top : top + int(crop.rows[0]), left : left + int(crop.cols[0])]


@settings(deadline=None, max_examples=60)
@given(g=geometries(), height=st.integers(2, 40), width=st.integers(2, 40))
def test_partners_equal_index_tables(g: ViewGeometry, height: int, width: int) -> None:
    table_q = turned_and_cropped(torch.arange(height * width).view(height, width), g, height, width)
    rows, cols = table_q.shape
    i = torch.arange(rows) * height // rows
    j = torch.arange(cols) * width // cols
    # A turned wide grid can have more rows than the grid has: then several rows map to one patch, and the last one
    # counts.
    expected = {int(i[a]) * width + int(j[b]): set() for a in range(rows) for b in range(cols)}  # type: ignore[var-annotated]
    for a in range(rows):
        for b in range(cols):
            expected[int(i[a]) * width + int(j[b])].add(int(table_q[a, b]))
    paired = paired_patches(g, height, width)[0]
    assert set(paired.nonzero().flatten().tolist()) == set(expected)
    patches = torch.tensor([sorted(expected)])
    partners = partner_patches(g, patches, height, width)[0].tolist()
    for patch, partner in zip(patches[0].tolist(), partners, strict=True):
        assert partner in expected[patch]


@settings(deadline=None, max_examples=40)
@given(g=geometries(), height=st.integers(3, 30), width=st.integers(3, 30))
def test_warp_equals_flip_turn_crop_resize(g: ViewGeometry, height: int, width: int) -> None:
    image = torch.rand((1, 2, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = F.interpolate(
        turned_and_cropped(image, g, height, width),
        size=(height, width),
        mode="bilinear",
        align_corners=False,
    )
    torch.testing.assert_close(warp(image, g), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_class_shares_equal_resize(antialias: bool, turns: int) -> None:
    g = geometry(True, turns, 0.05, 0.02, 0.85, 0.9)
    size, patches = 64, 16
    labels = F.one_hot(torch.randint(0, 3, (1, size, size), generator=torch.Generator().manual_seed(1)), 3)
    labels = labels.permute(0, 3, 1, 2).double()
    crop = crop_on_grid(g, patches, patches)
    rows, cols = int(crop.rows[0]), int(crop.cols[0])
    resized = F.interpolate(
        labels, size=(rows, cols), mode="bilinear", antialias=antialias, align_corners=False
    )
    shares = class_shares(labels, g, patches, patches, antialias=antialias)
    i, j = torch.arange(rows) * patches // rows, torch.arange(cols) * patches // cols
    torch.testing.assert_close(shares[:, :, i][:, :, :, j], resized, atol=1e-9, rtol=0)


def test_pairing_error_is_below_one_patch() -> None:
    """The centres of paired patches are less than one patch apart in the image."""
    config = ViewConfig(size=(376, 376))
    g = draw_geometry(60, config, torch.Generator().manual_seed(0))
    for patches in (94, 188, 376):
        stride = 376 / patches
        paired = paired_patches(g, patches, patches)
        every = torch.arange(patches * patches).expand(len(g), -1)
        partner = partner_patches(g, every, patches, patches)
        rows, cols = (every // patches + 0.5) * stride - 0.5, (every % patches + 0.5) * stride - 0.5
        y, x = view_to_source(g, rows.double(), cols.double(), 376, 376)
        error_y = (y - ((partner // patches + 0.5) * stride - 0.5)).abs() / stride
        error_x = (x - ((partner % patches + 0.5) * stride - 0.5)).abs() / stride
        worst = torch.maximum(error_y, error_x)[paired].max()
        assert worst < 1.0


def test_draws_stay_inside_and_follow_config() -> None:
    g = draw_geometry(500, ViewConfig(), torch.Generator().manual_seed(3))
    assert bool((g.top + g.height <= 1 + 1e-12).all())
    assert bool((g.height >= 0.8).all())
    assert (g.turns.bincount() / 500).tolist() == pytest.approx([0.25] * 4, abs=0.06)
    assert float(g.flip.double().mean()) == pytest.approx(0.5, abs=0.06)
    # The sizes and the offsets of the crop are uniform and independent.
    shares = torch.stack(
        ((1 - g.height) / 0.2, (1 - g.width) / 0.2, g.top / (1 - g.height), g.left / (1 - g.width))
    )
    ranks = (torch.arange(500).double() + 0.5) / 500
    assert float((shares.sort(dim=1).values - ranks).abs().max()) < 0.08
    together = torch.corrcoef(torch.cat((shares, torch.stack((g.flip, g.turns)).double())))
    assert float((together - torch.eye(6)).abs().max()) < 0.2
    still = draw_geometry(
        20, ViewConfig(flip=False, rotate=False, crop=0.0), torch.Generator().manual_seed(3)
    )
    assert not bool(still.flip.any())
    assert still.turns.eq(0).all()
    image = torch.rand(20, 1, 17, 23)
    torch.testing.assert_close(warp(image, still), image, atol=1e-5, rtol=0)
