"""Times below which no implementation of an operation can be on a card, from the card's own measured rates.

E pairs, D width. A product of E pairs takes 2 E D operations; each pair takes at least one exponential per pass. Main
memory never binds the losses; it binds sampling, which reads every patch once.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Ceilings(NamedTuple):
    """Rates of one card."""

    copy_bytes_per_second: float
    """Bytes read plus bytes written by a copy."""
    flops_per_second: float
    """16-bit matrix products."""
    exponentials_per_second: float
    """Base-2 exponentials in float32."""


def of(result: Mapping[str, float]) -> Ceilings:
    """Ceilings from what `ceilings.py` recorded."""
    return Ceilings(*(float(result[key]) for key in Ceilings._fields))


def _pass(ceilings: Ceilings, operations: float, exponentials: float) -> float:
    """Milliseconds: products and exponentials run side by side, the slower binds."""
    return 1e3 * max(operations / ceilings.flops_per_second, exponentials / ceilings.exponentials_per_second)


def loss_pairs(rows: int, groups: int) -> float:
    """Pairs of M rows that are negatives, by equal groups; 0 groups: each pair its own."""
    return rows * rows * (1 - 1 / groups if groups else 1)


def loss(rows: int, width: int, groups: int, ceilings: Ceilings) -> dict[str, float]:
    """Milliseconds of forward, and of forward and backward, of `patch_nt_xent`.

    `row`: every row walks all columns. `symmetric`: the forward pass uses each product for its row and its column.
    """
    pairs = loss_pairs(rows, groups)
    forward = _pass(ceilings, 2 * pairs * width, pairs)
    half = _pass(ceilings, pairs * width, pairs / 2)
    backward = _pass(ceilings, 4 * pairs * width, pairs)
    return {
        "forward row": forward,
        "forward symmetric": half,
        "forward and backward row": forward + backward,
        "forward and backward symmetric": half + backward,
    }


def queue(rows: int, entries: int, width: int, ceilings: Ceilings) -> dict[str, float]:
    """Milliseconds of `queue_info_nce`; the gradient of the queries can come from the forward pass."""
    pairs = float(rows) * entries
    return {
        "forward": _pass(ceilings, 2 * pairs * width, pairs),
        "forward and backward": _pass(ceilings, 4 * pairs * width, pairs),
    }


def sampling(
    batch: int, templates: int, patches: int, width: int, ceilings: Ceilings, element: int = 2
) -> float:
    """Milliseconds of `sample_similar`: each patch read once, and multiplied with each template once."""
    numbers = float(batch) * patches * width
    return 1e3 * max(
        element * numbers / ceilings.copy_bytes_per_second,
        2 * numbers * templates / ceilings.flops_per_second,
    )
