"""Intervals from image to image, and the correction by confusion."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from pscl_hpc.metallography.correction import Correction
from pscl_hpc.metallography.image import Rules, measure_image
from pscl_hpc.metallography.statistics import jackknife, mean_interval
from pscl_hpc.metallography.summary import summarise
from pscl_hpc.segmentation.classes import ClassList

TWO = ClassList(("matrix", "carbide"))


def test_the_interval_of_a_mean_is_that_of_student() -> None:
    values = [0.10, 0.14, 0.12, 0.20]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    found = mean_interval(values)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    again = jackknife(values, lambda some: float(np.mean(some)))
    assert (again.low, again.high) == (pytest.approx(low), pytest.approx(high))


def test_few_images_have_no_interval_and_limits_cut() -> None:
    assert mean_interval([]).value is None
    assert mean_interval([0.3]).low is None
    assert mean_interval([0.0, 0.2], limits=(0, 1)).low == 0
    for value in (0.0, 1.0):  # found in no image, or everywhere: how it varies is not known
        nowhere = mean_interval([value] * 3, limits=(0, 1))
        assert (nowhere.value, nowhere.low, nowhere.high) == (value, None, None)
    assert mean_interval([0.5] * 3, limits=(0, 1)).low == 0.5
    assert jackknife([1.0, None], lambda some: next((x for x in some if x), None)).low is None


def test_the_interval_contains_the_true_fraction() -> None:
    """95% of the intervals of random fields do."""
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        found = mean_interval(random.normal(0.3, 0.05, 5).tolist())
        assert found.low is not None
        assert found.high is not None
        hits += found.low < 0.3 < found.high
    assert 0.92 < hits / 400 < 0.98


def test_a_known_confusion_is_undone() -> None:
    """A model that loses a fifth of the carbide and takes 5% of the matrix for carbide."""
    confusion = np.array([[760, 40], [40, 160]])
    correction = Correction((confusion, confusion), "val")
    predicted = confusion.sum(axis=0) / confusion.sum()
    assert correction.apply(predicted) == pytest.approx([0.8, 0.2])
    found = correction.estimate([predicted, predicted], 1)
    assert found.value == pytest.approx(0.2)
    assert found.low == pytest.approx(found.high)


def test_the_interval_of_a_correction_includes_the_validation_images() -> None:
    images = [np.array([0.8, 0.2]), np.array([0.82, 0.18]), np.array([0.78, 0.22])]
    same = np.array([[760, 40], [40, 160]])
    other = np.array([[700, 100], [20, 180]])
    sure = Correction((same, same), "val").estimate(images, 1)
    unsure = Correction((same, other), "val").estimate(images, 1)
    single = Correction((same,), "val").estimate(images, 1)
    assert sure.half is not None
    assert unsure.half is not None
    assert single.half is not None
    assert unsure.half > sure.half
    assert single.half == pytest.approx(sure.half)


def test_a_class_that_was_never_predicted_is_not_corrected() -> None:
    correction = Correction((np.array([[90, 10, 0], [10, 90, 0], [0, 0, 0]]),), "val")
    assert correction.apply(np.array([0.0, 0.0, 1.0])) == pytest.approx([0, 0, 1])
    assert correction.matrix().sum(axis=0) == pytest.approx([1, 1, 1])


def test_fractions_of_images_of_other_sizes_have_the_same_weight() -> None:
    rules = Rules.of(TWO)
    small, large = np.zeros((10, 10), np.uint8), np.zeros((40, 40), np.uint8)
    small[:5] = 1
    images = [measure_image("small", small, rules), measure_image("large", large, rules)]
    assert summarise(images, rules).find("carbide", "fraction").value == 0.25


def test_pixels_that_are_not_annotated_are_left_out() -> None:
    labels = np.zeros((10, 10), np.uint8)
    labels[:2], labels[8:] = 1, 255
    image = measure_image("a", labels, Rules.of(TWO))
    assert image.fractions() == pytest.approx([0.75, 0.25])
    mask = labels.copy()
    mask[0] = 255
    compared = measure_image("a", labels, Rules.of(TWO), mask=mask).confusion
    assert compared is not None
    assert compared.sum() == 70


def test_lengths_are_in_pixels_unless_every_scale_is_known() -> None:
    rules = Rules.of(TWO, smallest=1)
    labels = np.zeros((20, 20), np.uint8)
    labels[8:12, 8:12] = 1
    known = measure_image("a", labels, rules, um_per_pixel=0.5)
    unknown = measure_image("b", labels, rules)
    both = summarise([known, unknown], rules)
    assert both.unit == "px"
    assert any("b" in warning for warning in both.warnings)
    alone = summarise([known, known], rules)
    assert alone.unit == "um"
    assert not alone.warnings
    assert alone.find("carbide", "mean area").value == pytest.approx(16 / 4)
    diameter = alone.find("carbide", "mean diameter").value
    assert diameter == pytest.approx(2 * math.sqrt(16 / math.pi) / 2)
