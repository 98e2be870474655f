"""What was measured on one device, as a JSON file."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter

from pscl_hpc.errors import UserError
from pscl_hpc.runs import write_json

_AS_WRITTEN = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class Contrast:
    """One call of the gathered contrastive loss in a step: ``rows_fixed + rows_per_image * b`` pairs of ``width``."""

    __pydantic_config__: ClassVar[ConfigDict] = _AS_WRITTEN

    pairs_fixed: float
    pairs_per_image: float
    width: int
    item_bytes: int
    """Bytes of one number of a gathered row."""
    seconds_per_square: float
    """Forward and backward: seconds for M rows of one device, divided by M squared."""

    def rows(self, images: float) -> float:
        """Rows of both views, M, for so many unlabelled images."""
        return 2 * (self.pairs_fixed + self.pairs_per_image * images)


@dataclass(frozen=True)
class Rates:
    """One device's rates for one configuration. Sizes in bytes, times in seconds."""

    __pydantic_config__: ClassVar[ConfigDict] = _AS_WRITTEN

    device: str
    keys: dict[str, Any]
    """The configuration that was measured, as far as it decides these numbers: dotted keys and values."""
    references: int
    """References in a forward pass of one device."""
    step_fixed: float
    """Part of a step of one forward pass that does not depend on the images."""
    step_per_image: float
    """Time per unlabelled image, all but the contrastive losses of :attr:`contrasts`."""
    memory_fixed: float
    memory_per_image: float
    contrasts: tuple[Contrast, ...]
    symmetric: bool
    """Whether the loss uses symmetry within a device's own rows: rows of others then cost twice."""
    gradient_bytes: int
    normalisations: int
    """Batch normalisations in one pass of the network, each with collectives of a few numbers."""
    passes: int
    """Passes of the network per step whose normalisations are synchronised."""
    measured: dict[str, Any]
    """Raw times and memory by number of images, date, versions, commit."""


def save_rates(path: Path, rates: Rates) -> None:
    """Write the file."""
    write_json(path, dataclasses.asdict(rates))


def load_rates(path: Path) -> Rates:
    """Read what :func:`save_rates` wrote.

    Raises:
        UserError: when there is no such file or it holds something else.
    """
    try:
        return TypeAdapter(Rates).validate_python(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; measure it on the device with 'pscl-hpc plan --config FILE --measure {path}'"
        ) from None
    except (OSError, ValueError):
        raise UserError(
            f"{path}: holds no measured rates; measure them into a new file with "
            "'pscl-hpc plan --config FILE --measure NEW'"
        ) from None
