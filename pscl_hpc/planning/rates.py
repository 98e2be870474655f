"""The rates measured on one device, the configuration keys that they depend on, and their JSON file."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter

from pscl_hpc.config import dotted
from pscl_hpc.errors import UserError
from pscl_hpc.files import write_json
from pscl_hpc.pretraining.config import PretrainConfig

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
_WITHOUT_EFFECT = ("method.reference.", "views.jitter.")
"""Sections that change no measured number. The number of references is compared separately."""


@dataclass(frozen=True)
class Contrast:
    """One call of the gathered contrastive loss in a step."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    pairs_fixed: float
    pairs_per_image: float
    width: int
    item_bytes: int
    """Bytes of one number of a gathered row."""
    seconds_per_square: float
    """Forward and backward pass: seconds for the M rows of one device, divided by M squared."""

    def rows(self, images: float) -> float:
        """Rows of both views, M, for a number of unlabelled images."""
        return 2 * (self.pairs_fixed + self.pairs_per_image * images)


@dataclass(frozen=True)
class Rates:
    """Rates of one device for one configuration. Sizes in bytes, times in seconds."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    device: str
    keys: dict[str, Any]
    """See :func:`measured_keys`."""
    references: int
    """References in a forward pass of one device."""
    step_fixed: float
    """Part of a step with one forward pass that does not depend on the number of images."""
    step_per_image: float
    """Time per unlabelled image, without the contrastive losses of :attr:`contrasts`."""
    forward_fixed: float
    """Part that does not depend on the number of images of views and embedding without gradient."""
    forward_per_image: float
    memory_fixed: float
    memory_per_image: float
    contrasts: tuple[Contrast, ...]
    symmetric: bool
    """Whether the loss uses the symmetry within a device's own rows. Rows of other devices then cost twice as much."""
    gradient_bytes: int
    normalisations: int
    """Batch normalisations in one pass of the network, each with collectives of a few numbers."""
    passes: int
    """Passes of the network per step whose normalisations are synchronised."""
    measured: dict[str, Any]
    """Raw times and memory by number of images, date, versions, commit."""


def measured_keys(config: PretrainConfig) -> dict[str, Any]:
    """The configuration keys that decide the rates, dotted, with their values as in JSON."""
    tree = config.model_dump(mode="json")
    runtime = {key: tree["runtime"][key] for key in ("precision", "activation_checkpointing", "kernels")}
    sections = {key: tree[key] for key in ("method", "model", "views")}
    flat = dotted({**sections, "runtime": runtime, "optimiser": {"name": tree["optimiser"]["name"]}})
    return {key: value for key, value in flat.items() if not key.startswith(_WITHOUT_EFFECT)}


def difference(rates: Rates, config: PretrainConfig) -> str:
    """The first key whose value differs between the rates and the configuration, in words; empty if none does."""
    wanted, found = measured_keys(config), rates.keys
    for key in (*wanted, *found):
        if wanted.get(key) != found.get(key):
            return f"{key} {found.get(key)}, not {wanted.get(key)}"
    return ""


def save_rates(path: Path, rates: Rates) -> None:
    """Write the file."""
    write_json(path, dataclasses.asdict(rates))


def load_rates(path: Path) -> Rates:
    """Read a file that :func:`save_rates` wrote.

    Raises:
        UserError: the file does not exist or is not a file of rates.
    """
    try:
        return TypeAdapter(Rates).validate_python(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(
            f"{path}: not found; measure the rates on the device with 'pscl-hpc plan --config FILE --measure {path}'"
        ) from None
    except (OSError, ValueError):
        raise UserError(
            f"{path}: is not a file of measured rates; measure them into a new file with "
            "'pscl-hpc plan --config FILE --measure NEW'"
        ) from None
