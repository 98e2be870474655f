"""The configuration files that come with the package."""

from __future__ import annotations

from pathlib import Path

import pscl_hpc
from pscl_hpc.errors import UserError

_FOLDER = "configs"


def packaged_config(name: str) -> Path:
    """A file of ``configs/``, such as ``finetune/default.yaml``: in the installed package, or in the checkout.

    Raises:
        UserError: it is in neither.
    """
    found = packaged_path(Path(_FOLDER, name))
    if found is None:
        raise UserError(f"{_FOLDER}/{name} is not in this installation of pscl-hpc; install it again")
    return found


def packaged_path(path: Path) -> Path | None:
    """The packaged file that ``configs/...`` names where there is no such folder; None for any other path."""
    if path.parts[:1] != (_FOLDER,) or ".." in path.parts:
        return None
    package = Path(pscl_hpc.__file__).resolve().parent
    homes = (home / path for home in (package, package.parent))
    return next((file for file in homes if file.is_file()), None)
