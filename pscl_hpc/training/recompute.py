"""Activation checkpointing: a block keeps its input only and is computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pscl_hpc.models.unet import Block


def checkpoint_blocks(module: nn.Module) -> None:
    """Let every U-Net block inside ``module`` forget its activations. No number changes, no key of the state."""
    for block in module.modules():
        if type(block) is Block:
            # Its class and not its forward: a copy of the block is then one of its own.
            block.__class__ = _Recomputed


class _Recomputed(Block):
    """A block that is computed again in the backward pass."""

    def forward(self, input: Tensor) -> Tensor:
        found: Tensor = checkpoint(
            super().forward,
            input,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=self._contexts,
        )
        return found

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(self)


@contextmanager
def _statistics_kept(block: Block) -> Iterator[None]:
    """The second pass over a batch must not count it a second time in the running statistics."""
    norms = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    buffers = [norm._buffers for norm in norms]
    for norm in norms:
        norm._buffers = {key: None if x is None else x.clone() for key, x in norm._buffers.items()}
    try:
        yield
    finally:
        for norm, kept in zip(norms, buffers, strict=True):
            norm._buffers = kept
