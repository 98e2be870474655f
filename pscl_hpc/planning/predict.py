"""Step time, memory and communication on many devices (docs/scaling.md derives every line)."""

from __future__ import annotations

from dataclasses import dataclass

from pscl_hpc.planning.links import Links
from pscl_hpc.planning.rates import Rates

LOSS_GATHERS = 4
"""Gathers in one call of the contrastive loss: shapes, rows, groups, sums."""
ROW_EXTRA_BYTES = 16
"""Group and logarithm of its sum, kept with each gathered row."""


@dataclass(frozen=True)
class Prediction:
    """One step on ``ranks`` devices. Seconds and bytes, per device."""

    ranks: int
    nodes: int
    images: float
    """Unlabelled images per device."""
    compute: float
    """Network, views, sampling, optimiser."""
    loss: float
    """Contrastive losses over the rows of all ranks."""
    gather: float
    """Rows of the losses to all ranks."""
    reduce: float
    """Gradients."""
    normalise: float
    """Synchronised batch normalisation."""
    memory: float
    efficiency: float
    """Images per second per device, over those of one device with as many images of its own."""

    @property
    def step(self) -> float:
        """Seconds of one step."""
        return self.compute + self.loss + self.gather + self.reduce + self.normalise

    @property
    def images_per_second(self) -> float:
        """Unlabelled images of all devices per second."""
        return self.ranks * self.images / self.step


def predict(
    rates: Rates,
    links: Links,
    ranks: int,
    images: float,
    *,
    accumulate: int = 1,
    synchronised: bool = True,
    crowding: float = 1.0,
) -> Prediction:
    """One step with ``images`` unlabelled images on each of ``ranks`` devices.

    Nothing is taken to overlap, so that times are upper bounds as far as communication goes.

    Args:
        rates: Measured on one device.
        links: Between the devices.
        ranks: Devices, W.
        images: Unlabelled images per device, b; W * b of them in the batch.
        accumulate: Forward passes of a step, each over an equal part of the images.
        synchronised: Whether batch normalisation is over all ranks.
        crowding: How many ranks share one device's cores (1 on GPUs).
    """
    part = images / accumulate

    def seconds(ranks: int, crowding: float) -> dict[str, float]:
        once = _pass(rates, links, ranks, part, crowding, synchronised=synchronised)
        # Gradients are summed over the ranks after the last pass.
        return {
            **{k: accumulate * v for k, v in once.items()},
            "reduce": links.all_reduce(rates.gradient_bytes, ranks),
        }

    alone, found = seconds(1, 1.0), seconds(ranks, crowding)
    # While a pass that is not the first runs, the gradients of those before lie beside it.
    kept = rates.gradient_bytes if accumulate > 1 else 0
    step = sum(found.values())
    return Prediction(
        ranks=ranks,
        nodes=links.nodes(ranks),
        images=images,
        memory=_memory(rates, ranks, part) + kept,
        efficiency=sum(alone.values()) / step,
        **found,
    )


def _pass(
    rates: Rates, links: Links, ranks: int, images: float, crowding: float, *, synchronised: bool
) -> dict[str, float]:
    """One forward pass, its way back and an optimiser step, without the sum of gradients."""
    loss = gather = 0.0
    for contrast in rates.contrasts:
        own = contrast.rows(images)
        others = own * (ranks - 1)
        loss += contrast.seconds_per_square * own * (own + others * (2 if rates.symmetric else 1))
        row = contrast.width * contrast.item_bytes + ROW_EXTRA_BYTES
        if ranks > 1:
            gather += links.all_gather(ranks * own * row, ranks) + (LOSS_GATHERS - 1) * links.latency(ranks)
    # Sums forward and sums of gradients backward, each an all-reduce that is all latency.
    sums = 2 * rates.normalisations * rates.passes if synchronised else 0
    return {
        "compute": crowding * (rates.step_fixed + rates.step_per_image * images),
        "loss": crowding * loss,
        "gather": gather,
        "normalise": sums * 2 * links.latency(ranks),
    }


def _memory(rates: Rates, ranks: int, images: float) -> float:
    """What one device measured, and the rows of the others."""
    rows = sum(
        contrast.rows(images) * (contrast.width * contrast.item_bytes + ROW_EXTRA_BYTES)
        for contrast in rates.contrasts
    )
    return rates.memory_fixed + rates.memory_per_image * images + (ranks - 1) * rows
