"""Weights on disk: safetensors with the model's configuration in the header. Nothing is unpickled."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pscl_hpc.errors import UserError
from pscl_hpc.models.segmentation import SegmentationNet
from pscl_hpc.models.trunk import TRUNKS, Trunk, TrunkConfig, build_trunk
from pscl_hpc.runs import replace_file, writing

TRUNK_FILE = "trunk.safetensors"
MODEL_FILE = "model.safetensors"


@dataclass(frozen=True)
class ModelCard:
    """What a model file says of itself besides its weights."""

    model: TrunkConfig
    """The trunk can be rebuilt from it."""
    classes: tuple[str, ...] = ()
    """Class names in index order; empty for a trunk."""
    background: int = 0
    ignore_classes: tuple[int, ...] = ()


def save_trunk(path: Path, trunk: Trunk) -> None:
    """Write a trunk; JobError when it cannot be written."""
    _save(path, trunk, ModelCard(trunk.config))


def save_segmentation(path: Path, net: SegmentationNet, card: ModelCard) -> None:
    """Write trunk and classifier with the class list; JobError when they cannot be written."""
    _save(path, net, card)


def load_trunk(path: str | Path) -> Trunk:
    """A trunk from a run folder or a file: a pretraining trunk, or the trunk inside a segmentation model."""
    file = _resolve(Path(path), (TRUNK_FILE, MODEL_FILE))
    card, tensors = _load(file)
    trunk = build_trunk(card.model, initial=False)
    if card.classes:
        tensors = {
            key.removeprefix("trunk."): value for key, value in tensors.items() if key.startswith("trunk.")
        }
    _fill(trunk, tensors, file)
    return trunk


def load_segmentation(path: str | Path) -> tuple[SegmentationNet, ModelCard]:
    """A segmentation model from a fine-tuning run folder or a file."""
    file = _resolve(Path(path), (MODEL_FILE,))
    card, tensors = _load(file)
    if not card.classes:
        raise UserError(f"{file}: holds a trunk without a classifier; fine-tune it first")
    net = SegmentationNet(build_trunk(card.model, initial=False), len(card.classes))
    _fill(net, tensors, file)
    return net, card


def read_card(path: str | Path) -> ModelCard:
    """What a trunk or a segmentation model, a run folder or a file, says of itself; no weights are read."""
    file = _resolve(Path(path), (TRUNK_FILE, MODEL_FILE))
    return _load(file, weights=False)[0]


def _save(path: Path, module: nn.Module, card: ModelCard) -> None:
    header = {
        "model": card.model.model_dump(mode="json"),
        "classes": list(card.classes),
        "background": card.background,
        "ignore_classes": list(card.ignore_classes),
    }
    tensors = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    metadata = {"pscl_hpc": json.dumps(header)}

    def write(temporary: Path) -> None:
        try:
            save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error

    with writing(path):
        replace_file(path, write)


def _resolve(path: Path, names: tuple[str, ...]) -> Path:
    if path.is_dir():
        for name in names:
            if (path / name).is_file():
                return path / name
        raise UserError(f"{path}: has no {' or '.join(names)}; is the run finished?")
    if not path.is_file():
        raise UserError(f"{path}: no such model; name a run folder or a .safetensors file")
    return path


def _load(path: Path, *, weights: bool = True) -> tuple[ModelCard, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            header: Any = json.loads((file.metadata() or {}).get("pscl_hpc", "{}"))
            names = file.keys() if weights else ()
            tensors = {key: file.get_tensor(key) for key in names}
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); is it whole?") from None
    if not isinstance(header, dict) or "model" not in header:
        raise UserError(f"{path}: was not written by pscl-hpc: its header has no model description")
    try:
        card = ModelCard(
            TRUNKS.config(header["model"]["name"]).model_validate(header["model"]),
            tuple(str(name) for name in header.get("classes", ())),
            int(header.get("background", 0)),
            tuple(int(number) for number in header.get("ignore_classes", ())),
        )
    except (TypeError, ValueError, KeyError):
        raise UserError(f"{path}: its model description does not fit this version of pscl-hpc") from None
    return card, tensors


def _fill(module: nn.Module, tensors: dict[str, Tensor], file: Path) -> None:
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise UserError(
            f"{file}: weights do not fit the model it describes ({str(error).splitlines()[-1].strip()})"
        ) from None
