"""Device, threads, precision and memory of a run."""

from __future__ import annotations

import resource
from contextlib import AbstractContextManager

import torch

from pscl_hpc.config import RuntimeConfig
from pscl_hpc.errors import UserError


def setup_device(runtime: RuntimeConfig, local_rank: int = 0) -> torch.device:
    """Choose the device and set the options that decide numbers on it.

    Args:
        runtime: Settings.
        local_rank: Number of this process on its node; it takes the GPU of that number, or the only one it sees.

    Raises:
        UserError: a GPU is requested and there is none.
    """
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    has_gpu = torch.cuda.is_available()
    if runtime.device == "cuda" and not has_gpu:
        raise UserError(
            "runtime.device is 'cuda', but torch sees no GPU here; use auto or cpu, or see 'pscl-hpc doctor'"
        )
    device = torch.device("cuda" if has_gpu and runtime.device != "cpu" else "cpu")
    if device.type == "cuda":
        gpus = torch.cuda.device_count()
        if local_rank >= gpus > 1:
            raise UserError(
                f"rank {local_rank} of this node has no GPU: torch sees {gpus}; start one rank per GPU"
            )
        device = torch.device("cuda", local_rank if gpus > 1 else 0)
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    return device


def autocast(device: torch.device, runtime: RuntimeConfig) -> AbstractContextManager[object]:
    """The network's precision: bfloat16 autocast, or a context that does nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=runtime.precision == "bf16")


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MB: of the GPU's allocator, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
