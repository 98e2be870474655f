"""What a peer is: one implementation of others behind one call, with what it computes differently."""

import importlib
import sys
import types
from collections.abc import Callable
from importlib import metadata
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from bench.gpu.setting import Setting

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""q, k (N, D) of one dtype, groups (N,) or None for a group per pair -> mean loss, 0-d."""

Queue = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q, k (N, D), unit queue (Q, D) -> mean loss, 0-d."""

Top = Callable[[Tensor, Tensor], Tensor]
"""Unit templates (B, T, D), unit patches (B, P, D) -> (B, T) most similar patch of each template."""


class Peer(NamedTuple):
    """One implementation of one task."""

    name: str
    package: str
    """Distribution that it comes from."""
    task: Literal["loss", "queue", "top1"]
    build: Callable[[Setting, float], Any]
    """(setting, temperature) -> `Loss`, `Queue` or `Top`; raises ImportError or RuntimeError where it cannot run."""
    differs: str = ""
    """What it computes differently."""
    groups: bool = False
    """Whether it can leave out pairs of one group."""
    self_pair: bool = False
    """Whether a row's product with itself stays among its negatives."""
    gradients_on_cpu: bool = True
    most_rows: int = 65_536
    """Rows, or pairs' square root, up to which it is tried."""
    needs_gpu: bool = False


def version(package: str) -> str:
    """Version of a distribution; "none" where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def unit_rows(q: Tensor, k: Tensor) -> Tensor:
    """(2N, D) rows of q, then k, divided by their norms, in their dtype."""
    return torch.nn.functional.normalize(torch.cat([q, k]).float(), dim=1).to(q.dtype)


def partner_of(n: int, device: torch.device) -> Tensor:
    """(2N,) row of the same pair in the other view."""
    return torch.arange(2 * n, device=device).roll(n)


def positives(z: Tensor) -> Tensor:
    """(2N,) float32 cosine of each row with its partner."""
    q, k = z.float().chunk(2)
    return (q * k).sum(1).repeat(2)


def bare_packages(*names: str) -> None:
    """Make packages importable without running their `__init__`, which wants more than the module that is needed."""
    for name in names:
        if name in sys.modules:
            continue
        parent, _, last = name.rpartition(".")
        if parent:
            places = [f"{folder}/{last}" for folder in sys.modules[parent].__path__]
        else:
            found = importlib.util.find_spec(name)
            if found is None or found.submodule_search_locations is None:
                raise ImportError(f"No module named '{name}'")
            places = list(found.submodule_search_locations)
        module = types.ModuleType(name)
        module.__path__ = places
        sys.modules[name] = module
