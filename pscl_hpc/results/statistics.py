"""Paired comparison of two methods over the same annotated images.

The unit is the annotated image (or set of images): runs that differ only in their seed share it and are averaged first.
Only where a study plans a single set of images for a data set and budget are the seeds the units. Several splits of a
data set score the same runs: their Dice is averaged for each unit, and the stratum has the weight of all these splits.

Let unit i of stratum s (data set) have the Dice x_si with a method and y_si with the baseline, and let w_s be the share
of stratum s in all weights. The results are

* the gain, sum_s w_s mean_i(x_si - y_si);
* the share of the Dice error removed, R = 1 - sum_s w_s mean_i(1 - x_si) / sum_s w_s mean_i(1 - y_si).

Both have a 95% interval from Student's t. That of R comes from its linearisation (a ratio estimator; Cochran, Sampling
Techniques, 1977, section 6.4): the residuals (1 - x_si) - (1 - R)(1 - y_si), divided by the baseline's error, replace
the gains. With several strata the variances of their means add up, with Welch's and Satterthwaite's degrees of freedom.
With few units the interval is wide, as it should be; it holds for these data sets and not for all alloys. Units with
annotated images in common are not independent, and their variance is too small: they have no interval.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

CONFIDENCE = 0.95
Pair = tuple[float, float]
"""Dice of the method and of the baseline."""
Numbers = npt.NDArray[np.float64]
UnitKey = tuple[str, ...]
"""What the runs of a pair share: annotated images; or the seed, as text."""


@dataclass(frozen=True)
class Spread:
    """A score over runs."""

    mean: float
    std: float | None
    """Sample standard deviation (divided by n - 1); None for a single run."""
    worst: float
    count: int
    """Number of runs that have the score."""


def spread(values: Iterable[float | None]) -> Spread | None:
    """Mean, sample standard deviation and minimum of the values that are not None; None when there is none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    std = statistics.stdev(known) if len(known) > 1 else None
    return Spread(statistics.fmean(known), std, min(known), len(known))


class Record(BaseModel):
    """Base of everything that is written to ``results.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Estimate(Record):
    """A value with its interval; None where there are too few pairs, or pairs have annotated images in common."""

    value: float
    low: float | None
    high: float | None


class Comparison(Record):
    """A method against a baseline, pair by pair."""

    gain: Estimate
    """Of mean Dice."""
    error_removed: Estimate | None
    """Share of 1 - Dice; None where the baseline makes no error."""
    units: int
    """Number of pairs."""
    wins: int
    """Pairs in which the method has the higher Dice."""
    worst_gain: float
    """The method's lowest Dice minus the baseline's lowest, weighted mean over strata."""


class Scored(Protocol):
    """The score of one run."""

    @property
    def references(self) -> tuple[str, ...]:
        """Annotated images, in alphabetical order."""

    @property
    def seed(self) -> int | str:
        """The seed of the run."""

    @property
    def mean_dice(self) -> float | None:
        """Mean Dice over the classes."""


@dataclass(frozen=True)
class Stratum:
    """The units of one data set."""

    pairs: Sequence[Pair]
    """One for each unit."""
    weight: int = 1
    """Number of scores that it represents in the mean."""
    independent: bool = True
    """No annotated image is in two units."""


def mean_by_unit(rows: Sequence[Scored], *, by_seed: bool = False) -> dict[UnitKey, float]:
    """Mean Dice of each unit over its runs."""
    values: dict[UnitKey, list[float]] = {}
    for row in rows:
        if row.mean_dice is not None:
            values.setdefault((str(row.seed),) if by_seed else row.references, []).append(row.mean_dice)
    return {unit: sum(found) / len(found) for unit, found in values.items()}


def pair(
    method: Sequence[Sequence[Scored]], baseline: Sequence[Sequence[Scored]], *, by_seed: bool = False
) -> Stratum:
    """Pair the runs of one data set, from the repetitions (images and seed) that all parts have.

    Args:
        method: Runs of the method, one part for each split.
        baseline: Those of the baseline.
        by_seed: The seeds are the units, not the annotated images.
    """
    common = set.intersection(
        *(
            {(row.references, row.seed) for row in part if row.mean_dice is not None}
            for part in (*method, *baseline)
        )
    )
    first, second = (
        mean_by_unit(
            [row for part in side for row in part if (row.references, row.seed) in common], by_seed=by_seed
        )
        for side in (method, baseline)
    )
    images = [image for unit in first for image in unit]
    return Stratum(
        pairs=[(first[unit], second[unit]) for unit in first],
        weight=len(method),
        independent=by_seed or len(set(images)) == len(images),
    )


def compare(strata: Sequence[Stratum]) -> Comparison:
    """Compare over strata of paired units.

    Raises:
        ValueError: there is no stratum, or an empty one.
    """
    if not strata or not all(stratum.pairs for stratum in strata):
        raise ValueError("a comparison needs at least one pair in every stratum")
    shares = np.array([stratum.weight for stratum in strata]) / sum(stratum.weight for stratum in strata)
    arrays = [np.asarray(stratum.pairs, np.float64).reshape(-1, 2) for stratum in strata]
    gains = [pairs[:, 0] - pairs[:, 1] for pairs in arrays]
    worst = [float(pairs[:, 0].min() - pairs[:, 1].min()) for pairs in arrays]
    our_error, base_error = (
        float(shares @ [np.mean(1 - pairs[:, column]) for pairs in arrays]) for column in (0, 1)
    )
    independent = all(stratum.independent for stratum in strata)
    removed = None
    if base_error > 0:
        ratio = our_error / base_error
        # The mean over strata of these is 1 - ratio: those of the residuals alone are 0 by construction.
        parts = [1 - ratio - ((1 - pairs[:, 0]) - ratio * (1 - pairs[:, 1])) / base_error for pairs in arrays]
        removed = _estimate(parts, shares, independent)
    return Comparison(
        gain=_estimate(gains, shares, independent),
        error_removed=removed,
        units=sum(map(len, arrays)),
        wins=int(sum((gain > 0).sum() for gain in gains)),
        worst_gain=float(shares @ worst),
    )


def _estimate(parts: Sequence[Numbers], shares: Numbers, independent: bool) -> Estimate:
    """Weighted mean over strata of their means, with Student's interval where the units allow one."""
    value = float(shares @ [part.mean() for part in parts])
    if not independent or any(len(part) < 2 for part in parts):
        return Estimate(value=value, low=None, high=None)
    variances = shares**2 * [part.var(ddof=1) / len(part) for part in parts]
    variance = float(variances.sum())
    if variance == 0:
        return Estimate(value=value, low=value, high=value)
    # Variances as shares: their squares do not underflow where all differences are tiny.
    terms = [one**2 / (len(part) - 1) for one, part in zip(variances / variance, parts, strict=True)]
    freedom = 1 / sum(terms)
    from scipy.special import stdtrit  # here, because it takes long to import

    reach = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * math.sqrt(variance)
    return Estimate(value=value, low=value - reach, high=value + reach)
