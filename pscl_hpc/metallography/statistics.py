"""Intervals from image to image: the images are the independent samples, not the pixels or the particles."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
T = TypeVar("T")


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval; None where it does not exist, or where there are too few images."""

    value: float | None
    low: float | None = None
    high: float | None = None
    images: int = 0
    """Images that the value is based on."""

    @property
    def half(self) -> float | None:
        """Half the width of the interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def mean_interval(
    values: Sequence[float], *, limits: tuple[float, float] = (-math.inf, math.inf)
) -> Estimate:
    """Mean of one value per image with t s / sqrt(n) on either side (ASTM E562).

    Args:
        values: One per image.
        limits: Of possible values, at which the interval is cut.
    """
    if not values:
        return Estimate(None)
    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean, images=len(values))
    return around(mean, t_factor(len(values)) * float(np.std(values, ddof=1)) / math.sqrt(len(values)),
                  len(values), limits)  # fmt: skip


def jackknife(
    images: Sequence[T],
    statistic: Callable[[Sequence[T]], float | None],
    *,
    limits: tuple[float, float] = (0.0, math.inf),
) -> Estimate:
    """A statistic of a set of images, with the t interval of the jackknife, which leaves out one image at a time.

    For a mean over images this is :func:`mean_interval`; for a ratio of sums, such as the mean diameter of all
    particles, the images have the weights of their particles (Efron, The Jackknife, 1982, section 3).

    Args:
        images: What is known of each image.
        statistic: Its value for some of the images; None where it does not exist.
        limits: Of possible values, at which the interval is cut.
    """
    value, count = statistic(images), len(images)
    if value is None or count < 2:
        return Estimate(value, images=count if value is not None else 0)
    without = [statistic([*images[:place], *images[place + 1 :]]) for place in range(count)]
    known = [one for one in without if one is not None]
    if len(known) < count:
        return Estimate(value, images=count)
    return around(value, t_factor(count) * jackknife_error(known), count, limits)


def jackknife_error(without: Sequence[float]) -> float:
    """Standard error from the values that leave out one image each."""
    count = len(without)
    spread = np.asarray(without) - np.mean(without)
    return math.sqrt((count - 1) / count * float((spread**2).sum()))


def around(value: float, half: float, images: int, limits: tuple[float, float]) -> Estimate:
    """The estimate with ``half`` on either side, cut at the limits.

    If all images have the same value at a limit, such as a phase that is found in none, their variation tells nothing, and
    there is no interval.
    """
    if half == 0 and value in limits:
        return Estimate(value, images=images)
    return Estimate(value, max(limits[0], value - half), min(limits[1], value + half), images)


def t_factor(count: int) -> float:
    """Student's t for a 95% interval from ``count`` values."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1))
