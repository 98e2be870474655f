"""Corruption, the restoration loss on corrupted pixels only, and the balance of gradients."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pscl_hpc.methods import Setting
from pscl_hpc.methods.common.corruption import CorruptionConfig, corrupt
from pscl_hpc.methods.core_restoration import Core, CoreConfig, GradientBalance, restoration_error
from pscl_hpc.models.unet import UNet, UNetConfig
from pscl_hpc.seeding import Draws
from pscl_kernels import patch_nt_xent

from .test_pscl_simclr import assert_all_learn, draws, make_views, nt_xent

QUIET = {"blank": 0.0, "shuffle": 0.0, "noise": 0.0, "cutout": 0.0}


def images(batch: int, height: int = 48, width: int = 40, channels: int = 1) -> torch.Tensor:
    return torch.rand((batch, channels, height, width), generator=torch.Generator().manual_seed(1))


def generators(*slots: int) -> list[torch.Generator]:
    return Draws(3, 5, tuple(slots)).each("corruption", range(len(slots)))


@pytest.mark.parametrize("share", [0.1, 0.4, 0.9])
def test_the_configured_share_of_pixels_is_corrupted(share: float) -> None:
    config = CorruptionConfig(share=share, block=(8, 24), cutout=0.0)
    mask = corrupt(images(200), config, generators(*range(200))).mask
    # About 12 blocks an image: the standard error of the mean over 200 images is about 0.01.
    assert float(mask.float().mean()) == pytest.approx(share, abs=0.04)
    assert float(mask.float().mean(dim=(1, 2, 3)).std()) > 0.03, "each image is drawn separately"


def test_blocks_have_the_configured_size() -> None:
    config = CorruptionConfig(share=0.5, block=(16, 16), cutout=0.0)
    mask = corrupt(images(1, 160, 160), config, generators(0)).mask[0, 0]
    edges = (mask[1:] != mask[:-1]).any(dim=1).nonzero().flatten()
    assert len(edges) > 3
    assert {int(step) % 16 for step in edges.diff()} == {0}


def test_sides_and_offsets_of_blocks_are_drawn_for_each_image() -> None:
    config = CorruptionConfig(share=0.5, block=(15, 17), cutout=0.0)
    masks = corrupt(images(80, 150, 150), config, generators(*range(80))).mask[:, 0]
    sides, firsts = [], []
    for mask in masks:
        edges = ((mask[1:] != mask[:-1]).any(dim=1).nonzero().flatten() + 1).tolist()
        side = math.gcd(*(b - a for a, b in itertools.pairwise(edges)))
        assert side in (15, 16, 17)
        sides.append(side)
        firsts.append(edges[0] % side / side)
    assert min(sides.count(side) for side in (15, 16, 17)) > 12, "both ends of the range are drawn"
    assert sum(firsts) / 80 == pytest.approx(0.5, abs=0.12)
    assert len(set(firsts)) > 10


def test_kinds_of_corruption_have_the_configured_frequencies() -> None:
    # The image is 1 on the left and 0 on the right: blank blocks are 0.5, noise stays between 0 and 1.
    clean = torch.zeros(60, 1, 64, 64)
    clean[..., :32] = 1
    config = CorruptionConfig(blank=3.0, shuffle=0.0, noise=9.0, block=(8, 8), cutout=0.0)
    corrupted = corrupt(clean, config, generators(*range(60)))
    blank = (corrupted.images == 0.5) & corrupted.mask
    assert float(blank.sum() / corrupted.mask.sum()) == pytest.approx(0.25, abs=0.04)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 50),
    st.integers(1, 50),
    st.sampled_from([1, 3]),
    st.integers(1, 60),
    st.integers(2, 9),
    st.integers(0, 5),
)
def test_pixels_outside_the_mask_are_unchanged(
    height: int, width: int, channels: int, block: int, window: int, slot: int
) -> None:
    config = CorruptionConfig(block=(block, block), shuffle_window=window)
    clean = images(2, height, width, channels)
    before = clean.clone()
    corrupted = corrupt(clean, config, generators(slot, slot + 1))
    assert torch.equal(clean, before)
    assert corrupted.images.shape == clean.shape
    outside = ~corrupted.mask.expand_as(clean)
    assert torch.equal(corrupted.images[outside], clean[outside])
    assert bool(((corrupted.images >= 0) & (corrupted.images <= 1)).all())


def test_corruption_depends_on_the_slot_and_not_on_other_images() -> None:
    clean, config = images(4), CorruptionConfig(block=(8, 16))
    together = corrupt(clean, config, generators(0, 1, 2, 3))
    apart = [corrupt(clean[i : i + 1], config, generators(i)) for i in range(4)]
    assert torch.equal(together.images, torch.cat([part.images for part in apart]))
    assert torch.equal(together.mask, torch.cat([part.mask for part in apart]))
    assert not torch.equal(together.mask[0], together.mask[1])


def test_effect_of_each_corruption() -> None:
    clean = images(1, 64, 64)
    for kind in ("blank", "shuffle", "noise"):
        config = CorruptionConfig(**{**QUIET, kind: 1.0}, share=0.999, block=(64, 64), shuffle_window=8)
        corrupted = corrupt(clean, config, generators(0))
        assert bool(corrupted.mask.all())
        result = corrupted.images
        if kind == "blank":
            assert torch.allclose(result, clean.mean().expand_as(result))
        elif kind == "shuffle":
            assert not torch.equal(result, clean)
            for row in range(0, 64, 8):
                for col in range(0, 64, 8):
                    of_clean = clean[0, 0, row : row + 8, col : col + 8].flatten().sort().values
                    of_result = result[0, 0, row : row + 8, col : col + 8].flatten().sort().values
                    assert torch.equal(of_clean, of_result)
        else:
            change = result - clean
            assert 0.1 < float(change.std()) <= 0.25


def test_cutout_is_a_rectangle_of_the_configured_size() -> None:
    config = CorruptionConfig(share=1e-9, cutout=1.0, cutout_side=(0.25, 0.5))
    masks = corrupt(images(30, 40, 80), config, generators(*range(30))).mask[:, 0]
    for mask in masks:
        rows, cols = int(mask.any(dim=1).sum()), int(mask.any(dim=0).sum())
        assert int(mask.sum()) == rows * cols
        assert 10 <= rows <= 20
        assert 20 <= cols <= 40
    assert len({int(mask.sum()) for mask in masks}) > 10


def test_errors_of_settings_name_the_keys() -> None:
    with pytest.raises(ValidationError, match=r"block is \[9, 8\]"):
        CorruptionConfig(block=(9, 8))
    with pytest.raises(ValidationError, match="blank, shuffle and noise"):
        CorruptionConfig(**QUIET)


def make_method(**changes: object) -> Core:
    torch.manual_seed(0)
    config = CoreConfig.model_validate(
        {"projection": 8, "hidden": 8, "corruption": {"block": [6, 10]}, **changes}
    )
    return Core(UNet(UNetConfig(widths=(4, 8, 8, 16))), config, Setting())


def test_loss_equals_the_oracle() -> None:
    views, method = make_views(4, 0), make_method(balance="loss", restoration=0.25)
    output = method(views, draws(7), True)
    corrupted = method.corrupt(views, draws(7))
    features = method.trunk(corrupted.images)
    contrast = nt_xent(
        method.global_head(features.bottleneck).detach(),
        method.global_head(method.trunk(views.key).bottleneck).detach(),
        list(range(4)),
        0.5,
    )
    restored = method.restoration_head(features.scales[-1]).detach().double()
    total, count = 0.0, 0
    for image in range(4):
        for row, col in corrupted.mask[image, 0].nonzero().tolist():
            target = (float(views.query[image, 0, row, col]) - 0.5) / 0.25
            total += abs(float(restored[image, 0, row, col]) - target)
            count += 1
    assert count > 100
    assert float(output.terms["image/loss"]) == pytest.approx(contrast, rel=1e-4)
    assert float(output.terms["restoration/loss"]) == pytest.approx(total / count, rel=1e-5)
    assert float(output.loss.detach()) == pytest.approx(0.75 * contrast + 0.25 * total / count, rel=1e-4)
    assert float(output.terms["restoration/corrupted"]) == pytest.approx(count / (4 * 32 * 40), rel=1e-5)


def test_restoration_loss_is_over_corrupted_pixels_only() -> None:
    random = torch.Generator().manual_seed(0)
    restored = torch.randn((2, 3, 5, 6), generator=random, requires_grad=True)
    mask = torch.rand((2, 1, 5, 6), generator=random) < 0.3
    target = torch.where(mask, torch.randn((2, 3, 5, 6), generator=random), math.nan)
    error, values = restoration_error(restored, target, mask)
    assert int(values) == 3 * int(mask.sum())
    (error / values).backward()
    assert restored.grad is not None
    assert bool((restored.grad[~mask.expand_as(restored)] == 0).all())
    assert bool((restored.grad[mask.expand_as(restored)].abs() * mask.sum() * 3).allclose(torch.ones(())))
    nothing, values = restoration_error(restored, target, torch.zeros_like(mask))
    assert float(nothing.detach()) == int(values) == 0
    nothing.backward()
    assert bool(restored.grad.isfinite().all())


def test_every_parameter_learns() -> None:
    assert_all_learn(make_method(), make_views(3, 0))


def test_weights_give_the_configured_ratio_of_gradient_norms() -> None:
    views, method = make_views(4, 0), make_method(restoration=0.8)
    assert torch.allclose(method.balance.weights(), torch.tensor((0.2, 0.8), dtype=torch.float64)), (
        "nothing is known at first"
    )
    for _ in range(2):  # the second measurement is made with other weights, and says the same
        method.zero_grad()
        method(views, draws(7)).loss.backward()
        method.after_step(0.5)
        norms = []
        for loss in (0, 1):
            corrupted = method.corrupt(views, draws(7))
            maps = method.trunk.encode(corrupted.images)
            bottleneck = maps[-1].detach().requires_grad_()
            if loss:
                decoded = method.restoration_head(method.trunk.decode((*maps[:-1], bottleneck)).scales[-1])
                target = (views.query - 0.5) / 0.25
                value = (decoded - target).abs()[corrupted.mask].mean()
            else:
                key = method.global_head(method.trunk.encode(views.key)[-1])
                value = patch_nt_xent(method.global_head(bottleneck), key, temperature=0.5)
            (gradient,) = torch.autograd.grad(value, bottleneck)
            norms.append(float(gradient.norm()))
        weights = method.balance.weights()
        assert float(weights.sum()) == pytest.approx(1.0)
        assert float(weights[1]) * norms[1] / (float(weights[0]) * norms[0]) == pytest.approx(4.0, rel=1e-3)


def test_balance_is_restored_from_its_state_and_ignores_zero_gradients() -> None:
    balance = GradientBalance(0.5, measured=True)
    shared = torch.ones(3, requires_grad=True)

    def step(first: float, second: float) -> None:
        weights = balance.weights()
        a, b = balance.split(shared)
        (weights[0] * first * a.sum() + weights[1] * second * b.sum()).backward()
        balance.update()

    step(1.0, 3.0)
    assert torch.allclose(balance.weights(), torch.tensor((0.75, 0.25), dtype=torch.float64))
    step(1.0, 0.0)
    assert torch.allclose(balance.weights(), torch.tensor((0.75, 0.25), dtype=torch.float64))
    other = GradientBalance(0.5, measured=True)
    other.load_state_dict(balance.state_dict())
    assert torch.equal(other.weights(), balance.weights())
    balance.eval()
    step(5.0, 1.0)
    assert torch.equal(other.weights(), balance.weights()), "evaluation does not change the state"
    balance.train()
    for _ in range(200):
        step(5.0, 1.0)
    assert torch.allclose(balance.weights(), torch.tensor((1 / 6, 5 / 6), dtype=torch.float64), atol=1e-3)


@pytest.mark.parametrize(("share", "weights"), [(0.0, (1.0, 0.0)), (1.0, (0.0, 1.0))])
def test_either_loss_alone(share: float, weights: tuple[float, float]) -> None:
    views, method = make_views(3, 0), make_method(restoration=share)
    for _ in range(2):
        method(views, draws(0)).loss.backward()
        method.after_step(0.0)
    assert method.balance.weights().tolist() == list(weights)


def test_restored_images_are_in_range_and_of_the_right_shape() -> None:
    views, method = make_views(3, 0), make_method()
    corrupted, restored = method.restore(views, draws(0))
    assert restored.shape == views.query.shape
    assert corrupted.mask.shape == (3, 1, 32, 40)
    assert bool(((restored >= 0) & (restored <= 1)).all())
