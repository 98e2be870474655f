"""Requests for GPUs in the forms that Slurm has: plain numbers, types, MIG slices, generic resources."""

from __future__ import annotations

import re
from collections.abc import Mapping

OPTIONS = ("gres", "gpus", "gpus-per-task")
"""Options of sbatch, besides --gpus-per-node, that may request GPUs."""
_ITEM = re.compile(
    r"^(?:(?P<type>[^:\s]*[^:\s\d][^:\s]*):)?(?P<count>\d+)$|^(?P<alone>[^:\s]*[^:\s\d][^:\s]*)$"
)


def count_gpus(text: str) -> int:
    """The number of GPUs in a list of ``[TYPE:]COUNT``, such as ``4``, ``a100:4`` or ``1g.10gb:2,3g.40gb:1``.

    Raises:
        ValueError: it is not such a list.
    """
    found = [_ITEM.match(item.strip()) for item in text.split(",")]
    if not all(found):
        raise ValueError(f"'{text}' is not a number of GPUs; write 4, a100:4 or another TYPE:COUNT")
    return sum(int(item["count"] or 1) for item in found if item)


def gres_gpus(text: str) -> int:
    """The GPUs per node in a value of ``--gres``, such as ``gpu:2``, ``gpu:a100:4`` or ``shard:1,gpu:1g.10gb:2``."""
    total = 0
    for item in text.split(","):
        # A list of sockets may follow in parentheses.
        name, _, rest = item.strip().partition("(")[0].partition(":")
        if name in ("gpu", "gres/gpu"):
            total += count_gpus(rest) if rest else 1
    return total


def requested(
    gpus_per_node: int | str | None, sbatch: Mapping[str, object], nodes: int, tasks_per_node: int | None
) -> int:
    """GPUs on each node that a profile requests, in whichever form.

    Raises:
        ValueError: two forms are used at once, or the GPUs cannot be shared by the nodes or tasks.
    """
    given = {name.replace("_", "-"): str(value) for name, value in sbatch.items() if value is not False}
    found: dict[str, int] = {}
    if gpus_per_node:
        found["gpus_per_node"] = count_gpus(str(gpus_per_node))
    if gpus := gres_gpus(given.get("gres", "")):
        found["sbatch.gres"] = gpus
    if "gpus" in given:
        total = count_gpus(given["gpus"])
        if total % nodes:
            raise ValueError(
                f"sbatch.gpus is {given['gpus']} on {nodes} nodes, which cannot have equally many; use gpus_per_node"
            )
        found["sbatch.gpus"] = total // nodes
    if "gpus-per-task" in given:
        if count_gpus(given["gpus-per-task"]) != 1:
            raise ValueError(
                f"sbatch.gpus-per-task is {given['gpus-per-task']}, but one task runs on each GPU; use 1, or "
                "gpus_per_node"
            )
        found["sbatch.gpus-per-task"] = tasks_per_node or 1
    if len(found) > 1:
        raise ValueError(f"GPUs are requested twice, with {' and '.join(found)}; leave one out")
    return next(iter(found.values()), 0)


def without_gpus(sbatch: Mapping[str, object]) -> dict[str, object]:
    """Options of sbatch without those that request GPUs."""
    return {
        name: value
        for name, value in sbatch.items()
        if name.replace("_", "-") not in OPTIONS or (name == "gres" and not gres_gpus(str(value)))
    }
