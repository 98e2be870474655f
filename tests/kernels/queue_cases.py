"""Queues, labels and oracles that the test modules of the queue loss use."""

import math

import torch
from torch import Tensor

from pscl_kernels import queue_info_nce

if __package__:
    from .cases import assert_as_good_as_torch, loss_and_gradients, rows
else:
    from cases import assert_as_good_as_torch, loss_and_gradients, rows

KINDS = (
    "plain",
    "image",
    "dense",
    "normalised",
    "one group",
    "no match",
    "mostly absent",
    "nobody",
    "all empty",
)


def case(
    kind: str,
    n: int,
    entries: int,
    d: int,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    length: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor, dict]:
    """q, k (n, d), a queue (entries, d) of norms of about `length`, and the further arguments of that kind."""
    g = torch.Generator().manual_seed(seed)
    q, k = rows(n, d, dtype, seed)
    queue = torch.randn(entries, d, dtype=torch.float64, generator=g)
    queue = (length * queue / queue.norm(dim=1, keepdim=True).clamp_min(1e-8)).to(dtype)

    def ids(count: int, low: int, high: int) -> Tensor:
        return torch.randint(low, high, (count,), generator=g) * 1000

    def labels(low: int, high: int) -> dict:
        return {"groups": ids(n, low, high), "queue_groups": ids(entries, low, high)}

    def subgroups() -> dict:
        return {"subgroups": ids(n, -1, 3), "queue_subgroups": ids(entries, -1, 4)}

    def weights(count: int) -> Tensor:
        return torch.rand(count, generator=g) ** 4

    options = {
        "plain": {},
        "image": {**subgroups(), "same_weight": weights(entries)},
        "dense": {
            **labels(0, 4),
            **subgroups(),
            "same_weight": weights(entries),
            "any_weight": weights(entries),
            "row_weights": 2 * weights(n),
        },
        "normalised": {**labels(-1, 5), "any_weight": weights(entries), "normalise_targets": True},
        "one group": {
            **labels(3, 4),
            **subgroups(),
            "same_weight": weights(entries),
            "any_weight": weights(entries),
        },
        "no match": {
            "groups": ids(n, 0, 3),
            "queue_groups": ids(entries, 5, 8),
            **subgroups(),
            "same_weight": weights(entries),
            "any_weight": weights(entries),
        },
        "mostly absent": {**labels(-6, 2), **subgroups(), "same_weight": weights(entries)},
        "nobody": {
            "groups": ids(n, -3, 0),
            "queue_groups": ids(entries, 0, 3),
            "any_weight": weights(entries),
        },
        "all empty": {
            "groups": ids(n, 0, 3),
            "queue_groups": ids(entries, -3, 0),
            "any_weight": weights(entries),
        },
    }
    return q, k, queue, options[kind]


def on(device: str, options: dict) -> dict:
    """The arguments with their tensors on a device."""
    return {name: x.to(device) if isinstance(x, Tensor) else x for name, x in options.items()}


def target_matrix(options: dict, n: int, entries: int) -> Tensor:
    """(n, entries) labels y_ij in float64, -1 for empty slots, one by one, by the definition."""
    y = torch.zeros(n, entries, dtype=torch.float64)
    for i in range(n):
        for j in range(entries):
            if "groups" in options and options["queue_groups"][j] < 0:
                y[i, j] = -1
            elif "groups" not in options or options["groups"][i] == options["queue_groups"][j]:
                subgroup = options["subgroups"][i] if "subgroups" in options else -1
                if "same_weight" in options and subgroup >= 0 and subgroup == options["queue_subgroups"][j]:
                    y[i, j] += options["same_weight"][j]
                if "any_weight" in options:
                    y[i, j] += options["any_weight"][j]
    return y


def by_hand(q: Tensor, k: Tensor, queue: Tensor, options: dict, tau: float) -> float:
    """The definition, one scalar at a time."""
    y = target_matrix(options, len(q), len(queue)).tolist()
    weight = options["row_weights"].tolist() if "row_weights" in options else [1.0] * len(q)

    def unit(row: list[float]) -> list[float]:
        norm = max(math.sqrt(sum(v * v for v in row)), 1e-8)
        return [v / norm for v in row]

    def dot(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / tau

    total, count = 0.0, 0
    for i in range(len(q)):
        if "groups" in options and options["groups"][i] < 0:
            continue
        z = unit(q[i].tolist())
        logits = [dot(z, unit(k[i].tolist()))] + [dot(z, key) for key in queue.tolist()]
        targets = [1.0, *y[i]]
        used = [(s, t) for s, t in zip(logits, targets, strict=True) if t >= 0]
        lse = math.log(sum(math.exp(s) for s, _ in used))
        loss = sum(t * (lse - s) for s, t in used)
        if options.get("normalise_targets"):
            loss /= sum(t for _, t in used)
        total += weight[i] * loss
        count += 1
    return total / count if count else 0.0


def truth(q: Tensor, k: Tensor, queue: Tensor, options: dict, tau: float) -> tuple[Tensor, ...]:
    """The float64 oracle's loss and gradients on the given (already rounded) features."""
    return loss_and_gradients(
        lambda a, b, t: queue_info_nce(a, b, queue.double(), **options, temperature=t, backend="reference"),
        q.double(),
        k.double(),
        tau,
    )


def plain_torch(q: Tensor, k: Tensor, queue: Tensor, y: Tensor, options: dict, temperature: Tensor) -> Tensor:
    """The straightforward form: all similarities and labels `y`, at the precision of the features."""
    n = len(q)
    present = options["groups"] >= 0 if "groups" in options else torch.ones(n, dtype=torch.bool)
    z, other = (torch.nn.functional.normalize(x, dim=1, eps=1e-8) for x in (q, k))
    logits = torch.cat([(z * other).sum(1, keepdim=True), z @ queue.T], 1) / temperature.to(z.dtype)
    empty = torch.cat([torch.zeros(n, 1, dtype=torch.bool), y < 0], 1)
    targets = torch.cat([torch.ones(n, 1), y.clamp_min(0)], 1).to(z.dtype)
    if options.get("normalise_targets"):
        targets = targets / targets.sum(1, keepdim=True)
    shares = torch.log_softmax(logits.masked_fill(empty, -math.inf), 1).masked_fill(empty, 0)
    loss = -(targets * shares).sum(1)
    if "row_weights" in options:
        loss = loss * options["row_weights"].to(z.dtype)
    return (loss * present).sum() / present.sum().clamp_min(1)


def check_as_good_as_torch(
    backend: str,
    q: Tensor,
    k: Tensor,
    queue: Tensor,
    options: dict,
    tau: float,
    eps: float,
    device: str = "cpu",
):
    """Three-way rule, where `eps` is the relative rounding of a row before its logits are computed."""
    keys, given = queue.to(device), on(device, options)
    ours = loss_and_gradients(
        lambda a, b, t: queue_info_nce(a, b, keys, **given, temperature=t, backend=backend),
        q.to(device),
        k.to(device),
        tau,
    )
    y = target_matrix(options, len(q), len(queue))
    torchs = loss_and_gradients(lambda a, b, t: plain_torch(a, b, queue, y, options, t), q, k, tau)
    masses = 1 + y.clamp_min(0).sum(1)
    mass = 1.0 if options.get("normalise_targets") else max(masses.tolist(), default=1.0)
    weight = max(options["row_weights"].tolist(), default=1.0) if "row_weights" in options else 1.0
    length = max(1.0, max(queue.double().norm(dim=1).tolist(), default=0.0))
    # The size of the terms whose difference loss and gradients are; a rounded row moves a logit by eps length / tau.
    size = mass * weight * length
    rounding = eps * length / tau + 1e-6
    gradient = 2 * rounding + torch.finfo(q.dtype).eps
    present = options["groups"] >= 0 if "groups" in options else torch.ones(len(q), dtype=torch.bool)
    count = max(int(present.sum()), 1)
    shortest = [min(x.double().norm(dim=1).tolist(), default=1.0) for x in (q, k)]
    floors = (size, *(size / (tau * count * norm) for norm in shortest), size / tau**2)
    tolerances = (rounding, gradient, gradient, rounding)
    assert_as_good_as_torch(ours, torchs, truth(q, k, queue, options, tau), tolerances, floors)
