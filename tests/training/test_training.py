"""Optimisers, schedule, random streams, intensity changes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torch import Tensor

from pscl_hpc.config import JitterConfig, OptimiserConfig, ScheduleConfig
from pscl_hpc.seeding import Draws, derive_seed, numpy_generator, torch_generator
from pscl_hpc.training import build_optimiser, lr_factor, parameter_groups, set_lr
from pscl_hpc.views import jitter


@given(steps=st.integers(1, 500), warmup=st.integers(0, 600), decay=st.sampled_from(["constant", "cosine"]))
def test_learning_rate_stays_between_zero_and_base(steps: int, warmup: int, decay: str) -> None:
    config = ScheduleConfig.model_validate({"steps": steps, "warmup_steps": warmup, "decay": decay})
    factors = [lr_factor(step, config) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    rising = factors[: min(warmup, steps)]
    assert rising == sorted(rising)
    if decay == "cosine" and steps > warmup:
        falling = factors[warmup:]
        assert falling == sorted(falling, reverse=True)
        assert falling[0] == 1


@pytest.mark.parametrize(
    ("decay", "after"),
    [("constant", [1.0] * 8), ("cosine", [0.5 + 0.5 * math.cos(math.pi * i / 8) for i in range(8)])],
)
def test_learning_rate_rises_in_a_line_and_falls_as_a_cosine(decay: str, after: list[float]) -> None:
    config = ScheduleConfig.model_validate({"steps": 12, "warmup_steps": 4, "decay": decay})
    assert [lr_factor(step, config) for step in range(12)] == pytest.approx([0.2, 0.4, 0.6, 0.8, *after])


def test_groups_keep_their_own_rates() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    groups = parameter_groups(model[0], 0.1, 0.5) + parameter_groups(model[1], 0.01, 0.5, name="norm")
    optimiser = build_optimiser(groups, OptimiserConfig(name="adamw", lr=1.0))
    rates = set_lr(optimiser, 0, ScheduleConfig(steps=10, warmup_steps=1))
    assert rates == {"lr": 0.05, "norm/lr": 0.005}
    assert [group["lr"] for group in optimiser.param_groups] == [0.05, 0.05, 0.005]
    assert [group["weight_decay"] for group in optimiser.param_groups] == [0.5, 0.0, 0.0]


def test_random_streams_depend_on_every_part_of_the_key() -> None:
    seeds = {
        derive_seed(1, "views", 3),
        derive_seed(2, "views", 3),
        derive_seed(1, "view", 3),
        derive_seed(1, "views", 4),
    }
    assert len(seeds) == 4
    assert numpy_generator(1, "a").integers(1 << 40) == numpy_generator(1, "a").integers(1 << 40)
    first = torch.rand(3, generator=torch_generator(5, "x", 1))
    assert torch.equal(first, torch.rand(3, generator=torch_generator(5, "x", 1)))


def test_draws_of_an_image_depend_on_seed_purpose_pass_and_place() -> None:
    def numbers(draws: Draws, purpose: str = "patches") -> list[list[float]]:
        return [
            torch.rand(2, generator=each).tolist() for each in draws.each(purpose, range(len(draws.slots)))
        ]

    first = numbers(Draws(5, 7, (0, 3)))
    others = [
        *numbers(Draws(6, 7, (0, 3))),
        *numbers(Draws(5, 8, (0, 3))),
        *numbers(Draws(5, 7, (0, 3)), "templates"),
        *numbers(Draws(5, 7, (1, 2))),
    ]
    assert len({tuple(pair) for pair in (*first, *others)}) == 10
    assert numbers(Draws(5, 7, (3,))) == first[1:], "the other images of a rank do not count"


@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_stays_in_range_and_off_means_off(channels: int) -> None:
    images = torch.rand(6, channels, 9, 13)
    full = JitterConfig(gamma=0.5, noise=0.1, blur=1.0, hue=0.5, probability=1.0)
    changed = jitter(images, full, torch.Generator().manual_seed(0))
    assert changed.shape == images.shape
    assert float(changed.min()) >= 0
    assert float(changed.max()) <= 1
    assert all(not torch.equal(a, b) for a, b in zip(changed, images, strict=True))
    assert torch.equal(changed, jitter(images, full, torch.Generator().manual_seed(0)))
    off = JitterConfig(brightness=0, contrast=0, saturation=0, hue=0, probability=1.0)
    torch.testing.assert_close(jitter(images, off, torch.Generator()), images)
    never = jitter(images, full.model_copy(update={"probability": 0.0}), torch.Generator())
    assert torch.equal(never, images)


def jitter_one(images: Tensor, **changes: float) -> tuple[Tensor, Tensor]:
    """Images with these changes and no other, and the numbers in 0..1 that were drawn, (8, B, 1, 1, 1)."""
    off = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, "probability": 1.0}
    changed = jitter(images, JitterConfig(**{**off, **changes}), torch.Generator().manual_seed(3))
    draws = torch.rand((8, len(images), 1, 1, 1), generator=torch.Generator().manual_seed(3))
    return changed, draws.double()


def some_images(channels: int = 1) -> Tensor:
    """Levels from which no change leads out of 0..1."""
    return torch.rand(4, channels, 12, 9, generator=torch.Generator().manual_seed(0)).double() * 0.2 + 0.4


def luma(images: Tensor) -> Tensor:
    return (images * torch.tensor([0.299, 0.587, 0.114]).double().view(3, 1, 1)).sum(dim=1, keepdim=True)


def test_noise_shifts_no_other_draw() -> None:
    images = torch.rand(4, 1, 16, 16)
    ends = []
    for noise in (0.0, 1e-9):
        random = torch.Generator().manual_seed(5)
        views = [jitter(images, JitterConfig(noise=noise), random) for _ in range(2)]
        ends.append((*views, torch.rand(3, generator=random)))
    for quiet, noisy in zip(*ends, strict=True):
        torch.testing.assert_close(quiet, noisy, atol=1e-6, rtol=0)
    random = torch.Generator().manual_seed(5)
    loud = JitterConfig(brightness=0, contrast=0, noise=0.2, probability=1.0)
    first, second = (jitter(torch.full((2, 1, 9, 9), 0.5), loud, random) for _ in range(2))
    assert not torch.equal(first, second), "each view has noise of its own"
    assert not torch.equal(first[0], first[1])


def test_brightness_and_contrast_follow_their_formulas() -> None:
    changed, draws = jitter_one(some_images(), brightness=0.2, contrast=0.3)
    bright = some_images() * (1 + 0.2 * (2 * draws[1] - 1))
    mean = bright.mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(changed, mean + (bright - mean) * (1 + 0.3 * (2 * draws[2] - 1)))


def test_saturation_and_gamma_follow_their_formulas() -> None:
    images = some_images(3)
    grey = luma(images)
    changed, draws = jitter_one(images, saturation=0.9)
    torch.testing.assert_close(changed, grey + (images - grey) * (1 + 0.9 * (2 * draws[3] - 1)))
    changed, draws = jitter_one(images, gamma=0.7)
    torch.testing.assert_close(changed, images ** torch.exp(0.7 * (2 * draws[5] - 1)))


def test_hue_turns_colours_about_the_grey_axis() -> None:
    images = some_images(3)
    changed, draws = jitter_one(images, hue=0.5)
    for image, found, draw in zip(images, changed, draws[4].flatten().tolist(), strict=True):
        angle, axis = 2 * math.pi * 0.5 * (2 * draw - 1), torch.full((3,), 3**-0.5, dtype=torch.float64)
        colours = image.flatten(1).T
        turned = (
            colours * math.cos(angle)
            + torch.linalg.cross(axis.expand_as(colours), colours) * math.sin(angle)
            + axis * (colours @ axis)[:, None] * (1 - math.cos(angle))
        )
        torch.testing.assert_close(found, turned.T.view_as(image))


def test_blur_is_a_gaussian_of_the_drawn_width() -> None:
    changed, draws = jitter_one(some_images(), blur=2.0)
    for image, found, draw in zip(some_images(), changed, draws[6].flatten().tolist(), strict=True):
        wanted = gaussian_filter(image[0].numpy(), 2.0 * draw, mode="mirror", radius=6)
        torch.testing.assert_close(found[0], torch.from_numpy(wanted))


def test_noise_is_white_and_each_image_has_its_own() -> None:
    changed, draws = jitter_one(torch.full((4, 1, 60, 60), 0.5).double(), noise=0.05)
    noise = ((changed - 0.5) / (0.05 * draws[7])).flatten(1)
    assert noise.mean(dim=1).tolist() == pytest.approx([0.0] * 4, abs=0.06)
    torch.testing.assert_close(torch.cov(noise), torch.eye(4).double(), atol=0.08, rtol=0)
    beside = (noise.view(4, 60, 60)[:, 1:] * noise.view(4, 60, 60)[:, :-1]).mean()
    assert abs(float(beside)) < 0.05


def test_hue_keeps_grey_and_turns_red_to_green() -> None:
    from pscl_hpc.views.intensity import _turn_hue

    grey = torch.full((1, 3, 2, 2), 0.4)
    torch.testing.assert_close(_turn_hue(grey, torch.full((1, 1, 1, 1), 0.3)), grey)
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    turned = _turn_hue(red, torch.full((1, 1, 1, 1), 1 / 3)).flatten()
    torch.testing.assert_close(turned, torch.tensor([0.0, 1.0, 0.0]), atol=1e-6, rtol=0)
