"""A folder to segment."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from .material import micrograph


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images in ``sem/`` and the mask of one in ``painted/``."""
    for name in ("sem", "painted"):
        (tmp_path / name).mkdir()
    for number in range(3):
        Image.fromarray(micrograph(number)[0]).save(tmp_path / f"sem/{number}.png")
    Image.fromarray(micrograph(1)[1]).save(tmp_path / "painted/1_mask.png")
    return tmp_path
