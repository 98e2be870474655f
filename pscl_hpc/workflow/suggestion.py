"""What to annotate when no mask is given."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from pscl_hpc.errors import UserError


def suggest(archive: Path, folder: Path) -> NoReturn:
    """End with a sentence that says which image to annotate.

    Args:
        archive: The images, without masks.
        folder: Where a template to paint on belongs.

    Raises:
        UserError: always.
    """
    raise UserError(
        f"no mask is given; annotate one image of {archive} and give its mask with --mask: a PNG of the same size whose "
        "values are class indices"
    )
