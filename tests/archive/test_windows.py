"""The order of images, windows that follow an annotated region, and the square with the most classes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pscl_hpc.archive import IGNORE_INDEX, epoch_order
from pscl_hpc.archive.windows import covering_square, draw_window, restrict

sides = st.integers(1, 60)


@given(count=st.integers(0, 300), seed=st.integers(0, 2**63), epoch=st.integers(0, 10**6))
def test_the_order_is_a_permutation_of_seed_and_epoch(count: int, seed: int, epoch: int) -> None:
    order = epoch_order(count, seed=seed, epoch=epoch)
    assert sorted(order) == list(range(count))
    np.testing.assert_array_equal(order, epoch_order(count, seed=seed, epoch=epoch))


def test_the_order_is_the_same_in_all_versions() -> None:
    """A change here would break the resume of every run."""
    assert epoch_order(8, seed=0, epoch=0).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]


def test_seeds_and_epochs_give_different_orders() -> None:
    orders = {tuple(epoch_order(50, seed=seed, epoch=epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    with pytest.raises(ValueError, match="negative"):
        epoch_order(-1, seed=0, epoch=0)


@given(sides, sides, sides, sides, sides, st.data())
def test_a_window_holds_its_region_or_lies_in_it(
    height: int, width: int, window_height: int, window_width: int, side: int, data: st.DataObject
) -> None:
    record = SimpleNamespace(height=height, width=width)
    rows, columns = min(side, height), min(side, width)
    top, left = data.draw(st.integers(0, height - rows)), data.draw(st.integers(0, width - columns))
    random = np.random.default_rng(0)
    window = draw_window(record, (window_height, window_width), random, (top, left, rows, columns))  # type: ignore[arg-type]
    assert window[2:] == (min(window_height, height), min(window_width, width))
    for start, size, total, begin, length in (
        (window[0], window[2], height, top, rows),
        (window[1], window[3], width, left, columns),
    ):
        assert 0 <= start <= start + size <= total
        inner, outer = (
            ((begin, length), (start, size)) if length <= size else ((start, size), (begin, length))
        )
        assert outer[0] <= inner[0]
        assert inner[0] + inner[1] <= outer[0] + outer[1]


def test_without_a_region_every_place_is_drawn() -> None:
    record, random = SimpleNamespace(height=5, width=4), np.random.default_rng(1)
    drawn = {draw_window(record, (3, 3), random)[:2] for _ in range(200)}  # type: ignore[arg-type]
    assert drawn == {(y, x) for y in range(3) for x in range(2)}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [(40, 53), (16, 90), (9, 7)])
def test_the_covering_square_is_the_best_of_all_compared(seed: int, size: tuple[int, int]) -> None:
    random = np.random.default_rng(seed)
    mask = random.choice(np.array([0, 1, 2, 3, IGNORE_INDEX], np.uint8), size, p=[0.7, 0.2, 0.04, 0.01, 0.05])
    side, classes = 16, (0, 1, 3)
    height, width = min(side, size[0]), min(side, size[1])

    def score(top: int, left: int) -> tuple[int, int]:
        part = mask[top : top + height, left : left + width]
        counts = [int((part == index).sum()) for index in classes]
        shown = [count for count in counts if count]
        return len(shown), min(shown, default=0)

    tops = sorted({*range(0, size[0] - height + 1, 8), size[0] - height})
    lefts = sorted({*range(0, size[1] - width + 1, 8), size[1] - width})
    best = max((score(top, left), -top, -left) for top in tops for left in lefts)
    assert covering_square(mask, classes, side) == (-best[1], -best[2], height, width)


def test_restricting_a_part_is_the_part_of_the_restricted() -> None:
    mask = np.random.default_rng(0).integers(0, 3, (20, 30)).astype(np.uint8)
    region = (5, 7, 8, 9)
    whole = np.full_like(mask, IGNORE_INDEX)
    whole[5:13, 7:16] = mask[5:13, 7:16]
    np.testing.assert_array_equal(restrict(mask, (0, 0, 20, 30), region), whole)
    window = (3, 10, 6, 15)
    np.testing.assert_array_equal(restrict(mask[3:9, 10:25], window, region), whole[3:9, 10:25])


def test_a_mask_without_any_of_the_classes_still_has_a_square() -> None:
    assert covering_square(np.full((30, 20), IGNORE_INDEX, np.uint8), (0, 1), 16) == (0, 0, 16, 16)
