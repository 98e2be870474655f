"""Shapes of the kernels' work."""

import torch
import triton
from torch import Tensor

from pscl_kernels.patch_nt_xent.triton.tiling import Config

BLOCK = 64
"""Entries that one program adds up in `runs`."""

PART = 32
"""Numbers of each entry that one program adds up in `runs`."""

ROWS = 4
"""Rows per program of the kernels that go over the rows alone."""

PROGRAMS = 264
"""Programs to split the work into where there are fewer blocks of rows: two for each multiprocessor of an H100."""

SPLIT_TILES = 4
"""Tiles a program should have at least."""


def forward_config(width: int, bits: int) -> Config:
    """Tiling of `_log_sums` for rows of `width` (a power of two) numbers of `bits` bits."""
    if bits == 32:
        return Config(64, 32, 4, 2) if width <= 64 else Config(32, 64, 8, 2)
    if width <= 64:
        return Config(128, 64, 4, 2)
    if width <= 128:
        return Config(128, 128, 8, 2)
    return Config(128, 64, 8, 2) if width <= 256 else Config(64, 32, 8, 2)


def backward_config(width: int, bits: int) -> Config:
    """Tiling of `_weighted_keys` for rows of `width` (a power of two) numbers of `bits` bits."""
    if bits == 32:
        return Config(32, 32, 4, 2) if width <= 64 else Config(32, 32, 8, 2)
    if width <= 128:
        return Config(128, 64, 8, 2)
    return Config(64, 64, 8, 2) if width <= 256 else Config(32, 64, 8, 2)


def splits(rows: int, entries: int, config: Config) -> int:
    """Number of programs that share the tiles of one block of rows."""
    blocks, tiles = -(-rows // config.rows), -(-entries // config.columns)
    return max(1, min(PROGRAMS // blocks, -(-tiles // SPLIT_TILES)))


def layout(q: Tensor) -> tuple[int, torch.dtype]:
    """See `operation.Backend`."""
    return max(16, triton.next_power_of_2(q.shape[1])), q.dtype


def on_device(scalar: Tensor, device: torch.device) -> Tensor:
    """0-d float32 copy on `device`; a host value is filled in, which never waits and may be captured in a graph."""
    if scalar.device == device:
        return scalar.float()
    return torch.full((), float(scalar), dtype=torch.float32, device=device)
