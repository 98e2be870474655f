"""Scores against sums over pixels in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pscl_hpc.archive import Collection
from pscl_hpc.models import ModelCard
from pscl_hpc.models.unet import UNetConfig
from pscl_hpc.segmentation import ClassList, ConfusionMatrix, Scores

FOUR = ClassList(("matrix", "network", "particle", "bar"), 0, (3,))


def score(classes: ClassList, *pairs: tuple[list[list[int]], list[list[int]]]) -> Scores:
    """Scores of (prediction, mask) pairs."""
    matrix = ConfusionMatrix(classes)
    for prediction, mask in pairs:
        matrix.update(np.array(prediction, np.uint8), np.array(mask, np.uint8))
    return matrix.scores()


@st.composite
def cases(draw: st.DrawFn) -> tuple[ClassList, list[tuple[np.ndarray, np.ndarray]]]:
    count = draw(st.integers(2, 6))
    ignored = tuple(sorted(draw(st.sets(st.integers(0, count - 1), max_size=count - 2))))
    background = draw(st.integers(0, count - 1))
    pairs = []
    for _ in range(draw(st.integers(0, 3))):
        shape = (draw(st.integers(1, 5)), draw(st.integers(1, 7)))
        prediction = draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, count - 1)))
        values = st.one_of(st.integers(0, count - 1), st.just(255))
        pairs.append((prediction, draw(hnp.arrays(np.uint8, shape, elements=values))))
    names = tuple(f"class {index}" for index in range(count))
    return ClassList(names, background, ignored), pairs


@settings(max_examples=150, deadline=None)
@given(cases())
def test_scores_equal_naive_sums_over_pixels(
    case: tuple[ClassList, list[tuple[np.ndarray, np.ndarray]]],
) -> None:
    classes, pairs = case
    found = score(classes, *pairs)
    predicted = [int(p) for prediction, _ in pairs for p in prediction.ravel()]
    truth = [int(t) for _, mask in pairs for t in mask.ravel()]
    pixels = [(p, t) for p, t in zip(predicted, truth, strict=True) if t != 255 and t not in classes.ignored]

    dice: dict[str, float | None] = {}
    iou: dict[str, float | None] = {}
    for index in range(len(classes.names)):
        if index == classes.background or index in classes.ignored:
            continue
        both = sum(p == t == index for p, t in pixels)
        size = sum((p == index) + (t == index) for p, t in pixels)
        dice[classes.names[index]] = 2.0 * both / size if size else None
        iou[classes.names[index]] = float(both) / (size - both) if size else None
    assert found.dice == pytest.approx(dice)
    assert found.iou == pytest.approx(iou)
    known = [value for value in dice.values() if value is not None]
    assert found.mean_dice == (pytest.approx(np.mean(known)) if known else None)
    known = [value for value in iou.values() if value is not None]
    assert found.mean_iou == (pytest.approx(np.mean(known)) if known else None)
    right = [p == t for p, t in pixels]
    assert found.pixel_accuracy == (pytest.approx(np.mean(right)) if right else None)
    assert found.images == len(pairs)


def test_dice_is_pooled_over_images_and_not_their_mean() -> None:
    large = ([[1] * 8], [[1] * 8])
    small = ([[0] * 8], [[0] * 7 + [1]])
    # One image at 1 and one at 0 would give 0.5; pooled it is 2 * 8 / (8 + 9).
    assert score(FOUR, large, small).dice["network"] == pytest.approx(16 / 17)


def test_an_absent_class_is_left_out_of_the_mean() -> None:
    found = score(FOUR, ([[0, 1]], [[0, 1]]))
    assert found.dice == {"network": 1.0, "particle": None}
    assert found.mean_dice == 1.0
    assert found.mean_iou == 1.0


def test_a_class_that_is_only_predicted_scores_zero() -> None:
    assert score(FOUR, ([[0, 1, 2]], [[0, 1, 0]])).dice == {"network": 1.0, "particle": 0.0}


def test_an_image_without_foreground_has_no_mean() -> None:
    found = score(FOUR, ([[0, 0]], [[0, 0]]))
    assert (found.mean_dice, found.mean_iou, found.pixel_accuracy) == (None, None, 1.0)


def test_ignored_and_unannotated_pixels_change_nothing() -> None:
    plain = score(FOUR, ([[0, 1, 2, 2]], [[0, 1, 2, 0]]))
    more = score(FOUR, ([[0, 1, 2, 2, 1, 2]], [[0, 1, 2, 0, 3, 255]]))
    assert more.to_json() == plain.to_json()


def test_without_images_all_scores_are_none() -> None:
    found = score(FOUR)
    assert (found.mean_dice, found.mean_iou, found.pixel_accuracy, found.images) == (None, None, None, 0)


def test_merged_matrices_score_all_images_together() -> None:
    rng = np.random.default_rng(0)
    whole = ConfusionMatrix(FOUR)
    parts = [ConfusionMatrix(FOUR), ConfusionMatrix(FOUR)]
    for place in range(6):
        pair = rng.integers(0, 3, (5, 4)).astype(np.uint8), rng.integers(0, 4, (5, 4)).astype(np.uint8)
        whole.update(*pair)
        parts[place % 2].update(*pair)
    parts[0].merge(parts[1])
    assert parts[0].scores() == whole.scores()
    with pytest.raises(ValueError, match="class lists"):
        whole.merge(ConfusionMatrix(ClassList(("a", "b"))))


def test_counts_do_not_overflow() -> None:
    matrix = ConfusionMatrix(ClassList(("a", "b")))
    matrix.counts[1, 1] = 2**40
    matrix.update(np.array([[1, 0]], np.uint8), np.array([[1, 1]], np.uint8))
    assert matrix.scores().dice["b"] == pytest.approx((2**41 + 2) / (2**41 + 3), abs=1e-15)


def test_prediction_and_mask_must_have_one_shape() -> None:
    with pytest.raises(ValueError, match="shape"):
        ConfusionMatrix(FOUR).update(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8))


def test_class_list_of_a_collection_and_of_a_model_are_the_same() -> None:
    collection = Collection("alloy", FOUR.names, 0, (3,))
    card = ModelCard(UNetConfig(), FOUR.names, 0, (3,))
    assert ClassList.of(collection) == ClassList.of(card) == FOUR
    assert (FOUR.kept, FOUR.foreground, FOUR.count) == ((0, 1, 2), (1, 2), 4)
    with pytest.raises(ValueError, match="two classes"):
        ClassList(("only", "ignored"), 0, (1,))
