"""Device, threads, precision and memory of a run."""

from __future__ import annotations

import ctypes
import functools
import os
import resource
import time
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import nn

from pscl_hpc.config import RuntimeConfig
from pscl_hpc.errors import UserError
from pscl_hpc.limits import usable_cpus

_CLEARLY_FASTER = 0.9
"""Share of the time of fp32 below which bf16 is chosen: a difference within the noise leaves fp32."""
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Options of ``mallopt``, from malloc.h."""
DEVICES = Path("/dev")
_HIDDEN = ("", "-1", "NoDevFiles")
"""Values of CUDA_VISIBLE_DEVICES that hide all GPUs."""
_NO_GPUS = {"SLURM_STEP_GPUS": ("",), "SLURM_JOB_GPUS": ("",), "SLURM_GPUS_ON_NODE": ("", "0")}
"""Variables of a job that Slurm gave GPUs, with their values for none: in the first two 0 is the first GPU."""


def setup_device(runtime: RuntimeConfig, local_rank: int = 0, local_world: int = 1) -> torch.device:
    """Choose the device and set the options that decide numbers on it.

    Args:
        runtime: Settings.
        local_rank: Number of this process on its node; it takes the GPU of that number, or the only one it sees.
        local_world: Processes of this run on the node, which share its CPUs.

    Raises:
        UserError: a GPU is requested and there is none, or torch cannot use the GPUs that this process has.
    """
    torch.set_num_threads(runtime.threads or own_threads(local_world))
    if runtime.device != "cpu":
        _take_slice(local_rank)
    has_gpu = runtime.device != "cpu" and torch.cuda.is_available()
    if runtime.device == "cuda" and not has_gpu:
        raise UserError(
            f"runtime.device is 'cuda', but torch sees no GPU here ({unusable_reason()}); use auto or cpu, or see "
            "'pscl-hpc doctor'"
        )
    if runtime.device == "auto" and not has_gpu and (found := own_gpus()):
        raise UserError(
            f"this process has GPUs ({found}), but torch cannot use them ({unusable_reason()}); repair this, or set "
            "runtime.device=cpu to train without them"
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


def own_threads(local_world: int) -> int:
    """Threads for one of ``local_world`` processes of a run on this machine: one for each CPU it may use.

    At most OMP_NUM_THREADS, which is cpus-per-task in a Slurm job. Torch itself would start one for each core of the
    machine, also where a container may use only a few.
    """
    return min(torch.get_num_threads(), own_cpus(local_world))


def own_cpus(local_world: int) -> int:
    """CPUs for one of ``local_world`` processes of a run on this machine. They share them; in a Slurm job each has its
    own."""
    return usable_cpus() if "SLURM_JOB_ID" in os.environ else max(1, usable_cpus() // local_world)


def keep_freed_memory() -> None:
    """Let the GNU C library keep the memory of freed tensors for the next ones.

    It would give tensors of 32 MB and more back to the system, which then clears their pages at each allocation: a fifth
    of a training step on large images. Settings in the environment (``MALLOC_...``) have priority.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # another C library
    for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1)):
        mallopt(option, value)


def own_gpus() -> str:
    """What shows that this process has GPUs, whether torch can use them or not; empty if nothing does.

    In a Slurm job only the GPUs count that Slurm gave it. GPUs that are hidden by CUDA_VISIBLE_DEVICES do not count.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES", "shown") in _HIDDEN:
        return ""
    if "SLURM_JOB_ID" in os.environ:
        found = {name: os.environ.get(name, "") for name in _NO_GPUS}
        return next((f"{name}={value}" for name, value in found.items() if value not in _NO_GPUS[name]), "")
    files = sorted(path.name for path in DEVICES.glob("nvidia[0-9]*"))
    return ", ".join(str(DEVICES / name) for name in files)


def unusable_reason() -> str:
    """Why torch sees no GPU, in a few words."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden in _HIDDEN:
        return f"CUDA_VISIBLE_DEVICES is '{hidden}'"
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is built without CUDA and ROCm"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().splitlines()[0]
    return "torch.cuda.is_available() is false"


def _take_slice(local_rank: int) -> None:
    """Show this process its own slice of several (MIG), because CUDA uses only the first that it sees."""
    slices = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if len(slices) > 1 and all(name.startswith("MIG-") for name in slices) and local_rank < len(slices):
        os.environ["CUDA_VISIBLE_DEVICES"] = slices[local_rank]


def autocast(device: torch.device, runtime: RuntimeConfig) -> AbstractContextManager[object]:
    """The network's precision: bfloat16 autocast, or a context that does nothing."""
    precision = fastest_precision(device) if runtime.precision == "auto" else runtime.precision
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


@functools.cache
def fastest_precision(device: torch.device) -> str:
    """fp32 or bf16: on a GPU bf16 if it supports that; on a CPU bf16 if :func:`measure_precisions` finds it faster.

    It is measured once per process.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    seconds = measure_precisions()
    return "bf16" if seconds["bf16"] < _CLEARLY_FASTER * seconds["fp32"] else "fp32"


def measure_precisions() -> dict[str, float]:
    """Seconds of a small convolutional block on the CPU, forward and backward, in each precision: the best of eight."""
    layers = nn.Sequential(
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 192, 1)
    )
    images = torch.ones(4, 32, 48, 48).contiguous(memory_format=torch.channels_last)
    found: dict[str, list[float]] = {"fp32": [], "bf16": []}
    # In turns, so that other work on the machine slows both; the first pass prepares the kernels.
    for _ in range(9):
        for precision, seconds in found.items():
            start = time.perf_counter()
            with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                output = layers(images)
            output.float().sum().backward()
            seconds.append(time.perf_counter() - start)
    return {precision: min(seconds[1:]) for precision, seconds in found.items()}


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MB: of the GPU's allocator, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
