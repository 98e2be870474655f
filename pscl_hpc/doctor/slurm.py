"""Slurm: its commands, and whether the controller and the accounting answer."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

from pscl_hpc.doctor.findings import Finding

COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sacct")
TIMEOUT_S = 8


def commands() -> Iterator[Finding]:
    """Whether ``submit --cluster slurm`` can work here."""
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if len(missing) == len(COMMANDS):
        yield Finding("note", "not installed; 'pscl-hpc submit' runs jobs on this machine (--cluster local)")
        return
    if missing:
        yield Finding(
            "note", f"{', '.join(missing)} missing", "install the complete Slurm client, or use a login node"
        )
    inside = os.environ.get("SLURM_JOB_ID")
    where = f", inside job {inside}" if inside else ""
    if "scontrol" in missing:
        return
    version = _ask("scontrol", "--version")
    ping = _ask("scontrol", "ping")
    if ping is None or " UP" not in f" {ping}".upper():
        yield Finding(
            "note",
            f"{version or 'installed'}, but no controller answers{where}",
            "check SLURM_CONF and 'scontrol ping', or use --cluster local",
        )
        return
    yield Finding("ok", f"{version}, the controller answers{where}")
    if "sacct" not in missing and _ask("sacct", "--noheader", "--starttime", "now") is None:
        yield Finding(
            "note",
            "sacct does not answer, so it is not known how a job ended",
            "ask the site for accounting (slurmdbd)",
        )


def _ask(*command: str) -> str | None:
    """The output of a command; None if it fails or does not answer in time."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
