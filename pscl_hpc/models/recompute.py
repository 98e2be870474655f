"""Activation checkpointing: a block keeps only its input, and is computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pscl_hpc.models.trunk import Trunk


def checkpoint_blocks(module: nn.Module) -> None:
    """Checkpoint the blocks of every trunk in ``module`` (``Trunk.recomputed``). Results and state keys do not
    change."""
    trunks = [part for part in module.modules() if isinstance(part, Trunk)]
    for block in [block for trunk in trunks for block in trunk.modules() if type(block) in trunk.recomputed]:
        # Replace the class and not the bound forward method, which would still be that of the original in a copy.
        block.__class__ = type(f"Recomputed{type(block).__name__}", (_Recomputed, type(block)), {})


class _Recomputed(nn.Module):
    """Mix-in for a block with one input and one output."""

    def forward(self, input: Tensor) -> Any:
        return checkpoint(
            super().forward,
            input,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=self._contexts,
        )

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _keep_statistics(self)


@contextmanager
def _keep_statistics(block: nn.Module) -> Iterator[None]:
    """Prevent the second pass over a batch from updating the running statistics again."""
    norms = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    buffers = [norm._buffers for norm in norms]
    for norm in norms:
        norm._buffers = {key: None if x is None else x.clone() for key, x in norm._buffers.items()}
    try:
        yield
    finally:
        for norm, kept in zip(norms, buffers, strict=True):
            norm._buffers = kept
