"""Python, torch, GPU, Triton, collectives, processor and memory."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from pscl_hpc.doctor import control_group
from pscl_hpc.doctor.findings import Finding

GIB = 1024**3
TRITON_OF_TORCH = {"2.11": "3.6", "2.13": "3.7"}
"""The Triton release that each tested torch release goes with."""


def python() -> Iterator[Finding]:
    """The interpreter."""
    text = f"{platform.python_version()} at {sys.executable}"
    if (3, 11) <= sys.version_info[:2] < (3, 13):
        yield Finding("Python", "ok", text)
    else:
        yield Finding("Python", "note", text, "use Python 3.11 or 3.12, which are tested")


def torch() -> Iterator[Finding]:
    """The torch build."""
    try:
        import torch
    except Exception as error:  # OSError where a library of CUDA is missing
        yield Finding(
            "torch", "problem", f"cannot be imported: {error}", "run 'make install' or pip install torch"
        )
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    yield Finding("torch", "ok", f"{torch.__version__} ({build})")


def gpu() -> Iterator[Finding]:
    """Graphics processors: name, memory, precision, and one small product on each."""
    import torch

    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            reason = (
                "this torch is a CPU build" if torch.version.cuda is None else "torch cannot use the driver"
            )
            yield Finding(
                "GPU",
                "note",
                f"nvidia-smi is here, but {reason}; everything runs on the CPU",
                "install a CUDA build of torch that fits the driver shown by nvidia-smi",
            )
        else:
            yield Finding(
                "GPU", "note", "none; everything runs on the CPU, so keep crops and schedules small"
            )
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        try:
            values = torch.ones(64, 64, device=f"cuda:{index}")
            works = bool((values @ values == 64).all())
        except RuntimeError as error:  # such as a device that this build has no kernels for
            yield Finding(
                "GPU",
                "problem",
                f"{properties.name}: cannot compute: {str(error).splitlines()[0]}",
                "install a torch for this device and its driver, leave the device out by CUDA_VISIBLE_DEVICES, or set "
                "runtime.device=cpu",
            )
            continue
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        text = (
            f"{properties.name}, {properties.total_memory / GIB:.0f} GiB, compute capability "
            f"{properties.major}.{properties.minor}, bf16 {'yes' if bf16 else 'no'}"
        )
        if not works:
            yield Finding("GPU", "problem", f"{text}; a product gave a wrong result", "leave this device out")
        elif bf16:
            yield Finding("GPU", "ok", text)
        else:
            yield Finding("GPU", "note", text, "keep runtime.precision=fp32 on this device")


def triton() -> Iterator[Finding]:
    """Triton, and whether it is the release that this torch goes with."""
    import torch

    if importlib.util.find_spec("triton") is None:
        yield Finding(
            "Triton",
            "note",
            "not installed; the chunked torch kernels are used",
            "pip install 'pscl-hpc[triton]'",
        )
        return
    import triton

    version = str(triton.__version__)
    wanted = TRITON_OF_TORCH.get(".".join(torch.__version__.split(".")[:2]))
    if wanted is None:
        yield Finding(
            "Triton", "note", f"{version}; its pairing with torch {torch.__version__} is not tested"
        )
    elif not version.startswith(f"{wanted}."):
        yield Finding(
            "Triton",
            "note",
            f"{version}, but torch {torch.__version__} goes with {wanted}",
            f"pip install 'triton=={wanted}.*'",
        )
    elif torch.cuda.is_available():
        yield Finding("Triton", "ok", f"{version}, the release for torch {torch.__version__}")
    else:
        yield Finding(
            "Triton", "ok", f"{version}, the release for torch {torch.__version__}; runs on a GPU only"
        )


def collectives() -> Iterator[Finding]:
    """Gloo, tried with one rank, and NCCL."""
    import torch
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_gloo_available():
        yield Finding(
            "collectives", "note", "gloo is missing; only one process can train", "install another torch"
        )
        return
    if not dist.is_initialized():
        try:
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group("gloo", store=store, rank=0, world_size=1)
            value = torch.ones(1)
            dist.all_reduce(value)
            dist.destroy_process_group()
        except RuntimeError as error:
            yield Finding(
                "collectives",
                "note",
                f"gloo does not start: {str(error).splitlines()[0]}",
                "make this host's name resolvable, or set GLOO_SOCKET_IFNAME to a network interface",
            )
            return
    if not torch.cuda.is_available():
        yield Finding("collectives", "ok", "gloo works; NCCL is for GPUs")
    elif dist.is_nccl_available():
        release = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
        yield Finding("collectives", "ok", f"gloo works; NCCL {release}")
    else:
        yield Finding("collectives", "note", "gloo works; NCCL is missing", "install a torch with NCCL")


def cpu() -> Iterator[Finding]:
    """Cores that may be used beside the threads that torch would start."""
    import torch

    from pscl_hpc.runs.provenance import cpu_name

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = control_group.cpu_quota()
    usable = cores if quota is None else min(cores, max(1, int(quota)))
    threads = torch.get_num_threads()
    text = f"{cpu_name()}, {usable} cores usable, torch uses {threads} threads"
    if threads > usable:
        yield Finding("CPU", "note", text, f"set OMP_NUM_THREADS={usable} or runtime.threads={usable}")
    else:
        yield Finding("CPU", "ok", text)


def memory() -> Iterator[Finding]:
    """Main memory, and the shared memory through which reading processes hand over batches."""
    available = _available_memory()
    if available is not None:
        enough = available >= 2 * GIB
        mend = "" if enough else "close other programs, or use smaller views.size and batch_size"
        yield Finding("memory", "ok" if enough else "note", f"{available / GIB:.1f} GiB free", mend)
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        if free < 256 * 1024**2:
            yield Finding(
                "memory",
                "note",
                f"/dev/shm has only {free / 1024**2:.0f} MiB",
                "keep runtime.workers=0, or start the container with more (docker run --shm-size 2g)",
            )


def tensorboard() -> Iterator[Finding]:
    """The optional writer of TensorBoard events."""
    try:
        version = importlib.metadata.version("tensorboard")
    except importlib.metadata.PackageNotFoundError:
        yield Finding(
            "TensorBoard",
            "note",
            "not installed; metrics.jsonl is written in any case",
            "pip install 'pscl-hpc[tensorboard]' to use log.tensorboard=true",
        )
        return
    yield Finding("TensorBoard", "ok", version)


def _available_memory() -> int | None:
    """Bytes free for this process, by the system and by its control groups."""
    values = [control_group.available_memory()]
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                values.append(int(line.split()[1]) * 1024)
    return min((value for value in values if value is not None), default=None)
