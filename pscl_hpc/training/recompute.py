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
        if isinstance(block, Block):
            _wrap(block)


def _wrap(block: Block) -> None:
    plain = block.forward

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(block)

    def forward(input: Tensor) -> Tensor:
        found: Tensor = checkpoint(
            plain, input, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
        )
        return found

    block.forward = forward  # type: ignore[method-assign]


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
