"""The momentum encoder: a moving average of its weights, which gives keys (MoCo) or targets (BYOL)."""

from __future__ import annotations

import copy
import math
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import nn

from pscl_hpc.config import Fraction, Strict

_M = TypeVar("_M", bound=nn.Module)


class MomentumConfig(Strict):
    """How the momentum encoder follows the trained network: ``slow = m * slow + (1 - m) * fast`` after each step."""

    start: Fraction = 0.99
    """m, at the first step. The copy lags by about 1 / (1 - m) steps: a run of a few hundred wants 0.9."""
    schedule: Literal["constant", "cosine"] = "constant"
    """constant, or a half cosine from ``start`` to 1 at the last step (BYOL, section 3.3)."""


class MomentumEncoder(nn.Module, Generic[_M]):
    """A copy of ``module`` that follows it slowly and has no gradient.

    Parameters are averaged; buffers are the copy's own. While training, its batch normalisation thus uses the
    statistics of the batch in front of it, and gathers running statistics of its own passes (as MoCo and BYOL were
    released). The copy is taken at construction.

    Args:
        module: What to follow. It stays out of the copy's state.
    """

    module: _M
    """The copy."""

    def __init__(self, module: _M) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).requires_grad_(False)

    @torch.no_grad()
    def forward(self, *args: Any) -> Any:
        """Output of the momentum network, without gradient."""
        return self.module(*args)

    @torch.no_grad()
    def follow(self, module: _M, momentum: float) -> None:
        """``slow = momentum * slow + (1 - momentum) * fast`` for every parameter.

        Args:
            module: The network that was copied.
            momentum: 0 copies it, 1 leaves the slow one as it is.
        """
        slow = [weight.detach() for weight in self.module.parameters()]
        fast = [weight.detach() for weight in module.parameters()]
        if len(slow) != len(fast):
            raise ValueError(f"a module of {len(fast)} parameters is no source of one of {len(slow)}")
        torch._foreach_lerp_(slow, fast, 1.0 - momentum)


def momentum_at(config: MomentumConfig, progress: float) -> float:
    """The momentum after ``progress`` (0 to 1) of the run; cosine is ``1 - (1 - start) (cos(pi progress) + 1) / 2``."""
    if config.schedule == "constant":
        return config.start
    return 1.0 - (1.0 - config.start) * (math.cos(math.pi * progress) + 1.0) / 2.0
