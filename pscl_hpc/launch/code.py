"""Whether a job runs the code that it was submitted with."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from pscl_hpc.errors import UserError

_PACKAGES = ("pscl_hpc", "pscl_kernels")


def source_hash() -> str:
    """SHA-256 over the Python files of the installed packages, whatever tracks them or does not."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or []) if spec else []:
            root = Path(place)
            for path in sorted(root.rglob("*.py")):
                data = path.read_bytes()
                digest.update(f"{package}/{path.relative_to(root).as_posix()} {len(data)}\n".encode())
                digest.update(data)
    return digest.hexdigest()


def check_source(expected: str, commit: str) -> None:
    """Refuse code other than that of the submission.

    Args:
        expected: what :func:`source_hash` gave then; empty to accept any.
        commit: the commit then, for the message.

    Raises:
        UserError: when a file was edited, added or removed since.
    """
    if expected and source_hash() != expected:
        then = (
            f"commit {commit[:12]}{'+changes' if commit.endswith('+changes') else ''}" if commit else "then"
        )
        raise UserError(
            f"the code of pscl_hpc has changed since this job was submitted (at {then}); restore it, submit again, "
            "or submit with --any-commit"
        )
