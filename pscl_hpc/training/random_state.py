"""The state of torch's global generators, kept to repeat a forward pass.

Only layers such as dropout may draw from them; every other draw comes from a generator of its own
(:mod:`pscl_hpc.seeding`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def random_state() -> dict[str, Tensor]:
    """The state of the generator of the CPU and, where CUDA is in use, of the current GPU."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_state(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Restore :func:`random_state`; that of a GPU only for work on a GPU."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
