"""The configuration files that come with the package."""

from __future__ import annotations

from pathlib import Path

import pscl_hpc
from pscl_hpc.errors import UserError


def packaged_config(name: str) -> Path:
    """A file of ``configs/``, such as ``finetune/default.yaml``: in the installed package, or in the checkout.

    Raises:
        UserError: it is in neither.
    """
    package = Path(pscl_hpc.__file__).resolve().parent
    for home in (package, package.parent):
        if (home / "configs" / name).is_file():
            return home / "configs" / name
    raise UserError(f"configs/{name} is not in this installation of pscl-hpc; install it again")
