"""Paired comparison of two methods over the same annotated images.

The unit is the annotated image (or set of images): runs that differ in their seed alone share it, so they are averaged
first. Only where a data set has a single unit are the seeds the units.

Let unit i of stratum s (data set and split) have the Dice x_si with a method and y_si with the baseline. Reported are

* the gain, the mean over strata of mean_i(x_si - y_si);
* the share of the Dice error removed, R = 1 - sum_s mean_i(1 - x_si) / sum_s mean_i(1 - y_si).

Both have a 95% interval from Student's t. That of R comes from its linearisation (a ratio estimator; Cochran, Sampling
Techniques, 1977, section 6.4): the residuals (1 - x_si) - (1 - R)(1 - y_si), divided by the baseline's error, take the
place of the gains. With several strata the variances of their means add up, with Welch's and Satterthwaite's degrees of
freedom. With few units the interval is wide, as it should be; it holds for these data sets and not for all alloys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from pscl_hpc.report.study_results import Estimate

CONFIDENCE = 0.95
Pair = tuple[float, float]
"""Dice of the method and of the baseline."""


@dataclass(frozen=True)
class Comparison:
    """A method against a baseline."""

    gain: Estimate
    """Of Dice."""
    error_removed: Estimate | None
    """Share of 1 - Dice; None where the baseline makes no error."""
    units: int
    wins: int
    """Units with a higher Dice than the baseline's."""
    worst_gain: float
    """The method's lowest Dice minus the baseline's lowest, averaged over strata."""


def compare(strata: Sequence[Sequence[Pair]]) -> Comparison:
    """Compare over strata of paired units; each stratum counts the same.

    Raises:
        ValueError: there is no stratum, or an empty one.
    """
    if not strata or not all(strata):
        raise ValueError("a comparison needs at least one pair in every stratum")
    arrays = [np.asarray(pairs, np.float64).reshape(-1, 2) for pairs in strata]
    gains = [pairs[:, 0] - pairs[:, 1] for pairs in arrays]
    worst = [float(pairs[:, 0].min() - pairs[:, 1].min()) for pairs in arrays]
    base_error = float(np.mean([np.mean(1 - pairs[:, 1]) for pairs in arrays]))
    removed = None
    if base_error > 0:
        ratio = float(np.mean([np.mean(1 - pairs[:, 0]) for pairs in arrays])) / base_error
        # The mean over strata of these is 1 - ratio: those of the residuals alone are 0 by construction.
        parts = [1 - ratio - ((1 - pairs[:, 0]) - ratio * (1 - pairs[:, 1])) / base_error for pairs in arrays]
        removed = _interval(parts)
    return Comparison(
        gain=_interval(gains),
        error_removed=removed,
        units=sum(map(len, arrays)),
        wins=int(sum((gain > 0).sum() for gain in gains)),
        worst_gain=float(np.mean(worst)),
    )


def _interval(parts: Sequence[npt.NDArray[np.float64]]) -> Estimate:
    """Mean over strata of their means, with Student's interval."""
    value = float(np.mean([part.mean() for part in parts]))
    if any(len(part) < 2 for part in parts):
        return Estimate(value=value, low=None, high=None)
    shares = np.array([part.var(ddof=1) / len(part) / len(parts) ** 2 for part in parts])
    variance = float(shares.sum())
    if variance == 0:
        return Estimate(value=value, low=value, high=value)
    freedom = variance**2 / sum(share**2 / (len(part) - 1) for share, part in zip(shares, parts, strict=True))
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(variance)
    return Estimate(value=value, low=value - reach, high=value + reach)
