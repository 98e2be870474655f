"""What this machine can do, and what to fix: the checks behind ``pscl-hpc doctor``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from pscl_hpc.doctor import hdf5, machine, slurm, storage, torch_stack, trackers
from pscl_hpc.doctor.findings import Finding
from pscl_hpc.errors import UserError

__all__ = ["Finding", "examine", "run_check"]

Check = Callable[[], Iterator[Finding]]


def examine(folder: Path) -> Iterator[Finding]:
    """Check this machine and ``folder``, the folder of the runs.

    Raises:
        UserError: ``folder`` does not exist.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: folder not found; name the folder of the runs with --folder")
    checks: list[tuple[str, Check]] = [
        ("Python", machine.python),
        ("torch", torch_stack.torch),
        ("GPU", torch_stack.gpu),
        ("Triton", torch_stack.triton),
        ("kernels", torch_stack.kernels),
        ("collectives", torch_stack.collectives),
        ("CPU", machine.cpu),
        ("memory", machine.memory),
        ("HDF5", hdf5.library),
        ("HDF5 filters", hdf5.filters),
        ("images", hdf5.images),
        ("folder", partial(storage.writing, folder)),
        ("file locks", partial(storage.locking, folder)),
        ("disk", partial(storage.space, folder)),
        ("Slurm", slurm.commands),
        *((name, partial(trackers.tracker, key)) for name, key in trackers.TRACKERS.items()),
    ]
    for area, check in checks:
        yield from run_check(area, check)


def run_check(area: str, check: Check) -> list[Finding]:
    """The findings of a check. An error inside the check is a finding too, so that the report continues."""
    found: list[Finding] = []
    try:
        found.extend(check())
    except Exception as error:
        found.append(Finding("note", f"check failed: {type(error).__name__}: {error}"))
    return [replace(finding, area=area) for finding in found]
