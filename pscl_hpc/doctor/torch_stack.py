"""torch, GPUs, Triton and collectives."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
from collections.abc import Iterator

from pscl_hpc.doctor.findings import GIB, Finding

TRITON_OF_TORCH = {"2.11": "3.6", "2.13": "3.7"}
"""The Triton release that belongs to each tested torch release."""


def torch() -> Iterator[Finding]:
    """The torch build."""
    try:
        import torch
    except Exception as error:  # OSError if a CUDA library is missing
        yield Finding("problem", f"cannot be imported: {error}", "run 'make install' or pip install torch")
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    yield Finding("ok", f"{torch.__version__} ({build})")


def gpu() -> Iterator[Finding]:
    """GPUs: name, memory, precision, and a small matrix product on each."""
    import torch

    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            reason = "torch is a CPU build" if torch.version.cuda is None else "torch cannot use the driver"
            yield Finding(
                "note",
                f"nvidia-smi is installed, but {reason}; everything runs on the CPU",
                "install a CUDA build of torch that fits the driver shown by nvidia-smi",
            )
        else:
            yield Finding("note", "none; everything runs on the CPU, so keep crops and schedules small")
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        try:
            values = torch.ones(64, 64, device=f"cuda:{index}")
            works = bool((values @ values == 64).all())
        except RuntimeError as error:  # such as a device that this build has no kernels for
            yield Finding(
                "problem",
                f"{properties.name}: cannot compute: {str(error).splitlines()[0]}",
                "install a torch for this device and its driver, exclude the device with CUDA_VISIBLE_DEVICES, or set "
                "runtime.device=cpu",
            )
            continue
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        text = (
            f"{properties.name}, {properties.total_memory / GIB:.0f} GiB, compute capability "
            f"{properties.major}.{properties.minor}, bf16 {'yes' if bf16 else 'no'}"
        )
        if not works:
            yield Finding(
                "problem", f"{text}; a matrix product is wrong", "exclude it with CUDA_VISIBLE_DEVICES"
            )
        elif bf16:
            yield Finding("ok", text)
        else:
            yield Finding("note", text, "keep runtime.precision=fp32 on this device")


def triton() -> Iterator[Finding]:
    """Triton, and whether its release belongs to this torch."""
    import torch

    if importlib.util.find_spec("triton") is None:
        yield Finding(
            "note", "not installed; the chunked torch kernels are used", "pip install 'pscl-hpc[triton]'"
        )
        return
    import triton

    version = str(triton.__version__)
    expected = TRITON_OF_TORCH.get(".".join(torch.__version__.split(".")[:2]))
    if expected is None:
        yield Finding("note", f"{version}; not tested with torch {torch.__version__}")
    elif not version.startswith(f"{expected}."):
        yield Finding(
            "note",
            f"{version}, but torch {torch.__version__} needs {expected}",
            f"pip install 'triton=={expected}.*'",
        )
    else:
        where = "" if torch.cuda.is_available() else "; runs on a GPU only"
        yield Finding("ok", f"{version}, the release for torch {torch.__version__}{where}")


def kernels() -> Iterator[Finding]:
    """The contrastive operations come with the toolkit; their package of its own must not lie over them."""
    import pscl_kernels

    try:
        version = importlib.metadata.version("pscl-kernels")
    except importlib.metadata.PackageNotFoundError:
        yield Finding("ok", f"{pscl_kernels.__version__}, part of pscl-hpc")
        return
    yield Finding(
        "problem",
        f"the package pscl-kernels {version} is installed over the same modules of pscl-hpc",
        "pip uninstall pscl-kernels, then install pscl-hpc again",
    )


def collectives() -> Iterator[Finding]:
    """Gloo, tried with one rank, and NCCL."""
    import torch
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_gloo_available():
        yield Finding(
            "note", "gloo is missing; training on several ranks is not possible", "install another torch"
        )
        return
    if not dist.is_initialized():
        try:
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group("gloo", store=store, rank=0, world_size=1)
            dist.all_reduce(torch.ones(1))
            dist.destroy_process_group()
        except RuntimeError as error:
            yield Finding(
                "note",
                f"gloo does not start: {str(error).splitlines()[0]}",
                "make this host's name resolvable, or set GLOO_SOCKET_IFNAME to a network interface",
            )
            return
    if not torch.cuda.is_available():
        yield Finding("ok", "gloo works; NCCL needs GPUs")
    elif dist.is_nccl_available():
        release = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
        yield Finding("ok", f"gloo works; NCCL {release}")
    else:
        yield Finding("note", "gloo works; NCCL is missing", "install a torch with NCCL")
