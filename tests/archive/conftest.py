from __future__ import annotations

from pathlib import Path

import pytest

from .archives import labels, picture, write_splits


@pytest.fixture
def steel(tmp_path: Path) -> Path:
    """A dataset folder with four images, three masks and splits."""
    folder = tmp_path / "steel"
    for name in "abcd":
        picture(folder / "img" / f"{name}.png")
    for name in "abc":
        picture(folder / "gt" / f"{name}.png", labels((6, 8)))
    write_splits(folder)
    return folder
