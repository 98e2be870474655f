"""Clustering with moving averages: k-means over the steps of a run, equal on every rank.

Shape legend: N vectors, D width, K clusters.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from pscl_hpc.training.reduce import sum_over_ranks

_ROUNDS = 5
"""k-means iterations after each split of the initial clustering."""


class Moments(NamedTuple):
    """Sums over the members of each cluster. They can be added over images and ranks."""

    share: Tensor
    """Number of members, or their share of all members, (K,)."""
    first: Tensor
    """Sum of the members, (K, D)."""
    second: Tensor
    """Sum of their squares, (K, D)."""

    @classmethod
    def of(cls, vectors: Tensor, labels: Tensor, clusters: int) -> Moments:
        """Moments of vectors (N, D) with labels (N,), in double precision. Negative labels are ignored."""
        vectors = torch.where(labels.unsqueeze(1) >= 0, vectors, 0.0).double()
        if vectors.device.type == "cpu":
            # Elsewhere this sums in any order.
            place = labels.clamp_min(-1) + 1
            count = place.bincount(minlength=clusters + 1).double()
            sums = vectors.new_zeros((2, clusters + 1, vectors.shape[1]))
            sums[0].index_add_(0, place, vectors)
            sums[1].index_add_(0, place, vectors.square())
            return cls(count[1:], sums[0, 1:], sums[1, 1:])
        member = F.one_hot(labels.clamp_min(-1) + 1, clusters + 1)[:, 1:].double()
        return cls(member.sum(dim=0), member.T @ vectors, member.T @ vectors.square())

    @property
    def centres(self) -> Tensor:
        """Mean of the members, (K, D); 0 for an empty cluster, which :func:`nearest` never returns."""
        return self.first / self._count

    @property
    def variance(self) -> Tensor:
        """Variance of the members, (K, D)."""
        return (self.second / self._count - self.centres.square()).clamp_min(0)

    @property
    def _count(self) -> Tensor:
        return torch.where(self.share > 0, self.share, 1.0).unsqueeze(1)

    def split(self, empty: int, scale: Tensor) -> Moments:
        """Split the cluster with the largest scatter in two. The second half replaces cluster ``empty``.

        The new centres are one standard deviation to either side, along the axis of the largest scaled variance.
        """
        scatter = (self.variance * scale.square()).sum(dim=1) * self.share
        scatter[self.share <= 0] = -1
        scatter[empty] = -1
        widest = int(scatter.argmax())
        variance = self.variance[widest]
        step = torch.zeros_like(variance)
        axis = int((variance * scale.square()).argmax())
        step[axis] = variance[axis].sqrt()
        share, first, second = (part.clone() for part in self)
        half = self.share[widest] / 2
        for place, centre in (
            (widest, self.centres[widest] - step),
            (empty, self.centres[widest] + step),
        ):
            share[place] = half
            first[place] = half * centre
            second[place] = half * (centre.square() + variance)
        return Moments(share, first, second)


class MovingMoments(nn.Module):
    """Moments of K groups of vectors of width D as moving averages over steps.

    Args:
        groups: K.
        width: D.
        memory: Share of the old moments in the moving averages.
    """

    share: Tensor
    first: Tensor
    second: Tensor

    def __init__(self, groups: int, width: int, memory: float) -> None:
        super().__init__()
        self.memory = memory
        self.register_buffer("share", torch.zeros(groups, dtype=torch.float64))
        self.register_buffer("first", torch.zeros(groups, width, dtype=torch.float64))
        self.register_buffer("second", torch.zeros(groups, width, dtype=torch.float64))

    @property
    def moments(self) -> Moments:
        """The moving averages. Shares add up to 1, or are all 0 before the first step."""
        return Moments(self.share, self.first, self.second)

    @torch.no_grad()
    def follow(self, batch: Moments) -> None:
        """Update with the moments of a batch, summed over ranks. The first batch is used as it is."""
        keep = self.memory if bool(self.share.sum() > 0) else 0.0
        total = batch.share.sum().clamp_min(1)
        self.set(
            Moments(
                *(keep * old + (1 - keep) * new / total for old, new in zip(self.moments, batch, strict=True))
            )
        )

    def set(self, moments: Moments) -> None:
        """Replace the moments, scaled so that shares add up to 1."""
        total = moments.share.sum().clamp_min(torch.finfo(torch.float64).tiny)
        for buffer, value in zip(self.moments, moments, strict=True):
            buffer.copy_(value / total)


class Clusters(MovingMoments):
    """K clusters of vectors of width D, initialised from the first batch and updated in each step.

    Moments of a batch, summed over ranks, update the moving averages. A cluster that loses its members is replaced by
    half of the cluster with the largest scatter. The initial clustering uses the same split from one cluster to K
    (Linde, Buzo and Gray 1980). Nothing is random, and the distribution of vectors over ranks matters only for the
    rounding of sums in double precision. Moments are those of the unscaled vectors; distances are between vectors times
    a ``scale`` (D,), which may change from step to step.

    Args:
        clusters: K, at least 1.
        width: D.
        memory: Share of the old moments in the moving averages.
    """

    @property
    def known(self) -> bool:
        """Whether the clusters are initialised."""
        return bool(self.share.sum() > 0)

    @torch.no_grad()
    def start(self, vectors: Tensor, scale: Tensor, process_group: dist.ProcessGroup | None = None) -> None:
        """The initial clustering of the vectors (N, D) of all ranks."""
        count = len(self.share)
        everything = torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)
        moments = _over_ranks(Moments.of(vectors, everything, count), process_group)
        for used in range(1, count):
            moments = moments.split(used, scale)
            for _ in range(_ROUNDS):
                labels, _ = nearest(vectors, moments, scale)
                moments = _over_ranks(Moments.of(vectors, labels, count), process_group)
        self.set(moments)

    @torch.no_grad()
    def revive(self, scale: Tensor) -> None:
        """Replace clusters with less than a hundredth of an equal share by half of the one with the largest scatter."""
        moments = self.moments
        for place in (moments.share < 0.01 / len(moments.share)).nonzero().flatten().tolist():
            moments = moments.split(place, scale)
        self.set(moments)


@torch.no_grad()
def nearest(vectors: Tensor, clusters: Moments, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest cluster of each vector (the first of equals), and its margin over the second.

    Args:
        vectors: (N, D).
        clusters: K, at least 2, of which at least one has members.
        scale: Factor on each axis, (D,).

    Returns:
        Cluster, int64 (N,), and margin (N,) in 0..1: (d2 - d1) / (d2 + d1) with the distances d1 to the nearest and d2
        to the second; 0 where both are zero or there is no second.
    """
    a, b = vectors.float() * scale.float(), clusters.centres.float() * scale.float()
    distance = torch.cdist(
        b, a, compute_mode="donot_use_mm_for_euclid_dist"
    )  # (K, N): reductions are vectorised
    distance.masked_fill_((clusters.share <= 0).unsqueeze(1), torch.inf)
    best = distance.amin(dim=0)
    numbers = torch.arange(len(b), device=vectors.device).unsqueeze(1)
    label = torch.where(distance == best, numbers, len(b) - 1).amin(dim=0)
    second = distance.scatter_(0, label.unsqueeze(0), torch.inf).amin(dim=0)
    total = best + second
    told = (total > 0) & second.isfinite()
    return label, torch.where(told, (second - best) / torch.where(told, total, 1.0), 0.0)


@torch.no_grad()
def clearest(labels: Tensor, margin: Tensor, share: float) -> Tensor:
    """Whether a vector is among the ``share`` of its cluster with the largest margins, bool (N,).

    Args:
        labels: Cluster of each vector, (N,).
        margin: Margin of each vector, (N,). Of equals the first are taken; vectors with margin 0 are never taken.
        share: Share of the vectors of each cluster, rounded up.
    """
    order = margin.argsort(descending=True, stable=True)
    order = order[labels[order].argsort(stable=True)]
    counts = labels.bincount()
    first = counts.cumsum(0) - counts
    rank = torch.arange(len(order), device=order.device) - first[labels[order]]
    taken = torch.zeros_like(margin, dtype=torch.bool)
    taken[order] = rank < (share * counts).ceil()[labels[order]]
    return taken & (margin > 0)


def _over_ranks(moments: Moments, process_group: dist.ProcessGroup | None) -> Moments:
    return Moments(*(sum_over_ranks(part, process_group) for part in moments))
