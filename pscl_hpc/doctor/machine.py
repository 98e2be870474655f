"""Python, CPU cores and memory."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from pscl_hpc.doctor.findings import GIB, Finding
from pscl_hpc.limits import available_memory, usable_cpus


def python() -> Iterator[Finding]:
    """The interpreter."""
    text = f"{platform.python_version()} at {sys.executable}"
    if (3, 11) <= sys.version_info[:2] < (3, 13):
        yield Finding("ok", text)
    else:
        yield Finding("note", text, "use Python 3.11 or 3.12, which are tested")


def cpu() -> Iterator[Finding]:
    """The usable cores, compared with the threads that torch would start."""
    import torch

    from pscl_hpc.runs.provenance import cpu_name

    usable = usable_cpus()
    threads = torch.get_num_threads()
    text = f"{cpu_name()}, {usable} cores usable, torch uses {threads} threads"
    if threads > usable:
        yield Finding("note", text, f"set OMP_NUM_THREADS={usable} or runtime.threads={usable}")
    else:
        yield Finding("ok", text)


def memory() -> Iterator[Finding]:
    """Main memory, and the shared memory through which data loading processes pass batches."""
    available = available_memory()
    if available is not None:
        enough = available >= 2 * GIB
        fix = "" if enough else "close other programs, or use smaller views.size and batch_size"
        yield Finding("ok" if enough else "note", f"{available / GIB:.1f} GiB free", fix)
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        if free < 256 * 1024**2:
            yield Finding(
                "note",
                f"/dev/shm has only {free / 1024**2:.0f} MiB",
                "keep runtime.workers=0, or start the container with more (docker run --shm-size 2g)",
            )
