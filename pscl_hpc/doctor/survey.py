"""All checks, in the order in which they are read."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pscl_hpc.doctor import compute, hdf5, slurm, storage
from pscl_hpc.doctor.findings import Check, Finding, guarded
from pscl_hpc.errors import UserError


def examine(folder: Path) -> Iterator[Finding]:
    """Look at this machine and at ``folder``, where runs are to be written.

    Raises:
        UserError: when ``folder`` does not exist.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name the one that runs are written to with --folder")
    checks: list[tuple[str, Check]] = [
        ("Python", compute.python),
        ("torch", compute.torch),
        ("GPU", compute.gpu),
        ("Triton", compute.triton),
        ("collectives", compute.collectives),
        ("CPU", compute.cpu),
        ("memory", compute.memory),
        ("HDF5", hdf5.library),
        ("HDF5 filters", hdf5.filters),
        ("images", hdf5.images),
        ("folder", partial(storage.writing, folder)),
        ("file locks", partial(storage.locking, folder)),
        ("disk", partial(storage.space, folder)),
        ("Slurm", slurm.commands),
        ("TensorBoard", compute.tensorboard),
    ]
    for area, check in checks:
        yield from guarded(area, check)
