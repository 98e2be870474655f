# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Rates of the card (copy, 16-bit matrix product, base-2 exponential) and the floors that follow from them.

A floor is the time below which no implementation of an operation can be on this card; results are given as shares of
it. With E pairs of width D, a matrix product takes 2 E D operations, and each pair takes at least one exponential per
pass. Products and exponentials run side by side, and the slower one counts. Main memory limits sampling only, which
reads every patch once.
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from bench.gpu.measure import BOTH, FORWARD, measure
from bench.gpu.run import Results, Setting, parse, read
from bench.gpu.shapes import LossShape, QueueShape, SamplingShape

BLOCK = 1024
"""Numbers that one program of `_exponentials` handles."""


class Ceilings(NamedTuple):
    """Rates of one card."""

    copy_bytes_per_second: float
    """Bytes read plus bytes written by a copy."""
    flops_per_second: float
    """16-bit matrix products."""
    exponentials_per_second: float
    """Base-2 exponentials in float32."""

    def _milliseconds(self, operations: float, exponentials: float) -> float:
        return 1e3 * max(operations / self.flops_per_second, exponentials / self.exponentials_per_second)

    def loss(self, shape: LossShape) -> dict[str, float]:
        """Floors of `patch_nt_xent`, in which each row sums over all columns."""
        pairs = shape.rows**2 * (1 - 1 / shape.groups if shape.groups else 1)
        forward = self._milliseconds(2 * pairs * shape.width, pairs)
        return {FORWARD: forward, BOTH: forward + self._milliseconds(4 * pairs * shape.width, pairs)}

    def queue(self, shape: QueueShape) -> dict[str, float]:
        """Floors of `queue_info_nce`, where the gradient of the queries can come from the forward pass."""
        pairs = float(shape.rows) * shape.entries
        operations = 2 * pairs * shape.width
        return {what: self._milliseconds(n * operations, pairs) for what, n in ((FORWARD, 1), (BOTH, 2))}

    def sampling(self, shape: SamplingShape) -> float:
        """Floor of `sample_similar`: each patch is read once and multiplied with each template once."""
        numbers = float(shape.batch) * shape.patches * shape.width
        return 1e3 * max(
            shape.dtype.itemsize * numbers / self.copy_bytes_per_second,
            2 * numbers * shape.templates / self.flops_per_second,
        )


def load(setting: Setting) -> Ceilings | None:
    """The rates in the results folder; None if they were not measured."""
    found = read(f"gpu-{setting.slug()}-ceilings") or {}
    rates = [found[name] for name in Ceilings._fields if name in found]
    return Ceilings(*rates) if len(rates) == len(Ceilings._fields) else None


def share(floor_ms: float, measured: dict[str, Any]) -> dict[str, float]:
    """The floor and its share of the median; {} if the measurement failed."""
    if "median_ms" not in measured:
        return {}
    return {"floor_ms": floor_ms, "share_of_floor": floor_ms / measured["median_ms"]}


def main() -> None:
    setting, _ = parse(argparse.ArgumentParser(description=__doc__))
    results = Results("ceilings", setting, sources=())
    results.entries.clear()
    for name, (call, work) in calls(setting).items():
        found = measure(setting, call, milliseconds=1000)
        if "median_ms" in found:
            results.header[name] = work / found["median_ms"] * 1e3
        results.add({"what": name, "work": work, **found})
    results.end()


def calls(setting: Setting) -> dict[str, tuple[Callable[[], object], float]]:
    """Call and work (bytes, operations or exponentials) for each rate."""
    size, side, programs, rounds = (2**16, 64, 2, 8) if setting.dry else (2**30, 8192, 16_384, 256)
    source, target = (torch.empty(size, dtype=torch.int8, device=setting.device) for _ in range(2))
    a, b = (torch.randn(side, side, device=setting.device).to(setting.dtype) for _ in range(2))
    out = torch.zeros(programs * BLOCK, device=setting.device)
    return {
        "copy_bytes_per_second": (lambda: target.copy_(source), 2.0 * size),
        "flops_per_second": (lambda: a @ b, 2.0 * side**3),
        "exponentials_per_second": (
            lambda: _exponentials[(programs,)](out, rounds, BLOCK=BLOCK),
            float(programs) * BLOCK * rounds,
        ),
    }


@triton.jit
def _exponentials(out, rounds, BLOCK: tl.constexpr):
    """Repeats x = 2^-x, whose values stay between 0 and 1."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(out + place)
    for _ in range(rounds):
        x = tl.math.exp2(-x)
    tl.store(out + place, x)


if __name__ == "__main__":
    main()
