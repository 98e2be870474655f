"""Step time, memory and communication on many devices. docs/scaling.md derives every line and states the limits."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from pscl_hpc.planning.rates import Rates

_LOSS_GATHERS = 4
"""Gathers in one call of the contrastive loss: shapes, rows, groups, sums."""
_ROW_EXTRA_BYTES = 16
"""Group and logarithm of the sum, which are kept with each gathered row."""


@dataclass(frozen=True)
class Links:
    """Connections between devices. Bandwidths in bytes per second, latencies in seconds."""

    per_node: int = 8
    """Devices in one node."""
    intra_bandwidth: float = 300e9
    """Between devices of a node, per device."""
    inter_bandwidth: float = 50e9
    """Between nodes, per node: all of its network cards together."""
    intra_latency: float = 10e-6
    """One hop inside a node, software included."""
    inter_latency: float = 25e-6
    """One hop between nodes, software included."""

    def nodes(self, ranks: int) -> int:
        """Number of nodes for a number of ranks."""
        return -(-ranks // self.per_node)

    def all_gather(self, size: float, ranks: int) -> float:
        """Seconds until every rank has all ``size`` bytes, of which each contributes an equal share."""
        if ranks == 1:
            return 0.0
        bandwidth = self.intra_bandwidth
        if self.nodes(ranks) > 1:
            bandwidth = min(bandwidth, self.inter_bandwidth)
        return (ranks - 1) / ranks * size / bandwidth + self.latency(ranks)

    def all_reduce(self, size: float, ranks: int) -> float:
        """Seconds until every rank has the sum of ``size`` bytes: a reduce-scatter and an all-gather."""
        return 2 * self.all_gather(size, ranks)

    def latency(self, ranks: int) -> float:
        """Seconds for a gather of almost no data: a ring inside the node, a tree between nodes."""
        if ranks == 1:
            return 0.0
        inside = (min(ranks, self.per_node) - 1) * self.intra_latency
        nodes = self.nodes(ranks)
        return inside + (math.ceil(math.log2(nodes)) * self.inter_latency if nodes > 1 else 0.0)


@dataclass(frozen=True)
class Assumption:
    """A number that a prediction rests on."""

    name: str
    value: str
    source: str
    """``measured`` where and when, ``given``, ``default, not measured`` or ``assumed``."""


def assumptions(rates: Rates, links: Links, given: Collection[str] = ()) -> list[Assumption]:
    """Everything that a prediction rests on, and where it comes from.

    Args:
        rates: Rates of one device.
        links: Connections between the devices.
        given: Fields of ``links`` that the user stated; the others are defaults.
    """
    measured = f"measured on {rates.device}" + (f", {date}" if (date := rates.measured.get("date")) else "")
    if disturbed := rates.measured.get("disturbed"):
        measured += f", on a busy machine ({disturbed})"
    shown = {
        "intra_bandwidth": ("bandwidth inside a node", f"{links.intra_bandwidth / 1e9:g} GB/s"),
        "inter_bandwidth": ("bandwidth between nodes", f"{links.inter_bandwidth / 1e9:g} GB/s"),
        "intra_latency": ("latency of a hop inside a node", f"{links.intra_latency * 1e6:g} us"),
        "inter_latency": ("latency of a hop between nodes", f"{links.inter_latency * 1e6:g} us"),
    }
    return [
        Assumption("step and memory of one device", f"{rates.step_per_image:.4g} s per image", measured),
        *(
            Assumption(name, value, "given" if key in given else "default, not measured")
            for key, (name, value) in shown.items()
        ),
        Assumption(
            "devices per node",
            str(links.per_node),
            "given" if "per_node" in given else "default, not measured",
        ),
        Assumption("overlap of communication and computation", "none", "assumed"),
        Assumption("reading of images, and waiting for the slowest rank", "no time", "assumed"),
    ]


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
    """Gathering the rows of the losses."""
    reduce: float
    """Summing the gradients."""
    normalise: float
    """Synchronised batch normalisation."""
    memory: float
    efficiency: float
    """Images per second per device, relative to one device alone with the same number of images per device."""

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
    parts: int = 1,
    synchronised: bool = True,
    crowding: float = 1.0,
) -> Prediction:
    """One step with ``images`` unlabelled images on each of ``ranks`` devices.

    Communication is assumed not to overlap with computation, so that its times are upper bounds.

    Args:
        rates: Rates of one device.
        links: Connections between the devices.
        ranks: Devices, W.
        images: Unlabelled images per device, b. The batch has W * b.
        accumulate: Forward passes of a step, each over an equal part of the images.
        parts: Parts of a device's images that are computed twice, for the loss of all of them (``accumulate=exact``);
            the last one once, as it is still in memory.
        synchronised: Whether batch normalisation is over all ranks.
        crowding: Number of ranks that share the cores of one device (1 on GPUs).
    """
    part = images / accumulate / parts

    def seconds(ranks: int, crowding: float) -> dict[str, float]:
        once = _pass(rates, links, ranks, part, parts, crowding, synchronised=synchronised)
        # Gradients are summed over the ranks after the last pass.
        return {
            **{k: accumulate * v for k, v in once.items()},
            "reduce": links.all_reduce(rates.gradient_bytes, ranks),
        }

    alone, found = seconds(1, 1.0), seconds(ranks, crowding)
    # After the first pass the accumulated gradients stay in memory.
    kept = rates.gradient_bytes if accumulate * parts > 1 else 0.0
    # Rows of the other parts and their gradients.
    kept += (parts - 1) * sum(2 * c.rows(part) * c.width * c.item_bytes for c in rates.contrasts)
    gathered = parts * sum(
        c.rows(part) * (c.width * c.item_bytes + _ROW_EXTRA_BYTES) for c in rates.contrasts
    )
    return Prediction(
        ranks=ranks,
        nodes=links.nodes(ranks),
        images=images,
        memory=rates.memory_fixed + rates.memory_per_image * part + (ranks - 1) * gathered + kept,
        efficiency=sum(alone.values()) / sum(found.values()),
        **found,
    )


def _pass(
    rates: Rates, links: Links, ranks: int, images: float, parts: int, crowding: float, *, synchronised: bool
) -> dict[str, float]:
    """Forward and backward pass and an optimiser step, without the sum of gradients, of parts of ``images`` each."""
    loss = gather = 0.0
    for contrast in rates.contrasts:
        own = parts * contrast.rows(images)
        others = own * (ranks - 1)
        loss += contrast.seconds_per_square * own * (own + others * (2 if rates.symmetric else 1))
        row = contrast.width * contrast.item_bytes + _ROW_EXTRA_BYTES
        if ranks > 1:
            gather += links.all_gather(ranks * own * row, ranks) + (_LOSS_GATHERS - 1) * links.latency(ranks)
    # Statistics in the forward pass and their gradients in the backward pass: all-reduces of latency only.
    sums = 2 * rates.normalisations * rates.passes if synchronised else 0
    steps = parts * (rates.step_fixed + rates.step_per_image * images)
    again = (parts - 1) * (rates.forward_fixed + rates.forward_per_image * images)
    return {
        "compute": crowding * (steps + again),
        "loss": crowding * loss,
        "gather": gather,
        "normalise": sums * 2 * links.latency(ranks),
    }
