"""Tile sizes of the kernels."""

from pscl_kernels.patch_nt_xent.triton.tiling import POLYNOMIAL_CHIPS, Config

BLOCK = 64
"""Entries per program in `runs`."""

PART = 32
"""Numbers of each entry per program in `runs`."""

ROWS = 4
"""Rows per program of the kernels that loop over rows only."""

LABELS = 128
"""Entries and rows per program of the kernels that look labels up."""

LOSSES = 256
"""Rows per program of the kernel that adds up their losses."""

PROGRAMS = 264
"""Number of programs if there are fewer blocks of rows: two for each multiprocessor of an H100."""

SPLIT_TILES = 4
"""Minimum number of tiles per program."""


def forward_config(width: int, bits: int, major: int) -> Config:
    """Tiling of `_log_sums` for rows of `width` (a power of two) numbers of `bits` bits on a `chip`."""
    if bits == 32:
        return Config(64, 32, 4, 2) if width <= 64 else Config(32, 64, 8, 2)
    if width <= 64:
        return Config(128, 64, 4, 2, polynomial=5 if major in POLYNOMIAL_CHIPS else 0)
    if width <= 128:
        return Config(128, 128, 8, 2, polynomial=4 if major in POLYNOMIAL_CHIPS else 0)
    return Config(128, 64, 8, 2) if width <= 256 else Config(64, 32, 8, 2)


def backward_config(width: int, bits: int, major: int) -> Config:
    """Tiling of `_weighted_keys`, as above."""
    if bits == 32:
        return Config(32, 32, 4, 2) if width <= 64 else Config(32, 32, 8, 2)
    if width <= 128:
        return Config(128, 64, 8, 2)
    if width <= 256:
        return Config(128, 32, 8, 2) if major == 9 else Config(64, 64, 8, 2)
    return Config(32, 64, 8, 2)


def splits(rows: int, entries: int, config: Config) -> int:
    """Number of programs that share the tiles of one block of rows."""
    blocks, tiles = -(-rows // config.rows), -(-entries // config.columns)
    return max(1, min(PROGRAMS // blocks, -(-tiles // SPLIT_TILES)))
