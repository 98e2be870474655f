"""Random numbers as pure functions of (seed, purpose, step, ...): nothing to save, nothing to restore.

Every draw of a run comes from a generator keyed by what it is for, so a run that was killed and resumed, or
whose readers are spread over other processes, draws the same numbers.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch


def derive_seed(seed: int, *key: int | str) -> int:
    """A 63-bit seed from a run's seed and a key; texts count by their CRC-32."""
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key]
    state = np.random.SeedSequence([seed, *words]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def numpy_generator(seed: int, *key: int | str) -> np.random.Generator:
    """A NumPy generator for one purpose."""
    return np.random.Generator(np.random.Philox(derive_seed(seed, *key)))


def torch_generator(seed: int, *key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for one purpose on one device."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *key))
