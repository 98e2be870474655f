"""Time of collectives from stated bandwidths and latencies (model and its limits: docs/scaling.md)."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Links:
    """What connects the devices. Bandwidths in bytes per second, latencies in seconds."""

    per_node: int = 8
    """Devices in one node, G."""
    intra_bandwidth: float = 300e9
    """Between devices of a node, per device."""
    inter_bandwidth: float = 50e9
    """Between nodes, per node: all of its network cards together."""
    intra_latency: float = 10e-6
    """Of one hop inside a node, software included."""
    inter_latency: float = 25e-6
    """Of one hop between nodes, software included."""

    def nodes(self, ranks: int) -> int:
        """Nodes that hold so many ranks."""
        return -(-ranks // self.per_node)

    def all_gather(self, size: float, ranks: int) -> float:
        """Seconds until every rank has all ``size`` bytes, of which it had its share: a byte passes a link once."""
        if ranks == 1:
            return 0.0
        return (ranks - 1) / ranks * size / self._bandwidth(ranks) + self.latency(ranks)

    def all_reduce(self, size: float, ranks: int) -> float:
        """Seconds until every rank has the sum of ``size`` bytes: a reduce-scatter and an all-gather."""
        return 2 * self.all_gather(size, ranks)

    def latency(self, ranks: int) -> float:
        """Seconds that a gather of almost nothing takes: a ring inside the node, a tree between nodes."""
        if ranks == 1:
            return 0.0
        inside = (min(ranks, self.per_node) - 1) * self.intra_latency
        nodes = self.nodes(ranks)
        return inside + (math.ceil(math.log2(nodes)) * self.inter_latency if nodes > 1 else 0.0)

    def _bandwidth(self, ranks: int) -> float:
        if self.nodes(ranks) == 1:
            return self.intra_bandwidth
        return min(self.intra_bandwidth, self.inter_bandwidth)
