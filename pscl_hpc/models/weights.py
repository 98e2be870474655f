"""Weights files: safetensors with the configuration of the model in the header. Nothing is unpickled."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pscl_hpc.errors import UserError
from pscl_hpc.files import replacing, writing
from pscl_hpc.models.segmentation import SegmentationNet
from pscl_hpc.models.trunk import TRUNKS, Trunk, TrunkConfig, build_trunk

TRUNK_FILE = "trunk.safetensors"
MODEL_FILE = "model.safetensors"


@dataclass(frozen=True)
class ModelCard:
    """Contents of a weights file besides the weights."""

    model: TrunkConfig
    """Settings of the trunk, from which it is rebuilt."""
    classes: tuple[str, ...] = ()
    """Class names in index order; empty for a trunk."""
    background: int = 0
    ignore_classes: tuple[int, ...] = ()
    resize: float = 1.0
    """Factor by which images are resized for the network."""
    class_weights: tuple[float, ...] = ()
    """Weights of the cross entropy in the training, one per class; empty: unknown."""


def save_trunk(path: Path, trunk: Trunk) -> None:
    """Write a trunk. JobError if the file cannot be written."""
    _save(path, trunk, ModelCard(trunk.config))


def save_segmentation(path: Path, net: SegmentationNet, card: ModelCard) -> None:
    """Write trunk, classifier and class names. JobError if the file cannot be written."""
    _save(path, net, card)


def load_trunk(path: str | Path) -> Trunk:
    """Load a trunk, or the trunk of a segmentation model, from a run folder or a file. UserError if that fails."""
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
    """Load a segmentation model from the run folder of a fine-tuning or a file. UserError if that fails."""
    file = _resolve(Path(path), (MODEL_FILE,))
    card, tensors = _load(file)
    if not card.classes:
        raise UserError(
            f"{file}: contains a trunk without a classifier; fine-tune it first with 'pscl-hpc finetune'"
        )
    net = SegmentationNet(build_trunk(card.model, initial=False), len(card.classes))
    _fill(net, tensors, file)
    return net, card


def read_card(path: str | Path) -> ModelCard:
    """The card of a trunk or segmentation model, from a run folder or a file, without reading the weights."""
    file = _resolve(Path(path), (TRUNK_FILE, MODEL_FILE))
    return _load(file, weights=False)[0]


def _save(path: Path, module: nn.Module, card: ModelCard) -> None:
    header = {
        "model": card.model.model_dump(mode="json"),
        "classes": list(card.classes),
        "background": card.background,
        "ignore_classes": list(card.ignore_classes),
        "resize": card.resize,
        "class_weights": list(card.class_weights),
    }
    tensors = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    write_tensors(path, tensors, {"pscl_hpc": json.dumps(header)})


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write contiguous tensors on the CPU and texts to a safetensors file. JobError if it cannot be written."""
    with writing(path), replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error


def _resolve(path: Path, names: tuple[str, ...]) -> Path:
    if path.is_dir():
        for name in names:
            if (path / name).is_file():
                return path / name
        raise UserError(
            f"{path}: contains no {' or '.join(names)}; wait until the run has finished, or name another run"
        )
    if not path.is_file():
        raise UserError(f"{path}: not found; name a run folder or a .safetensors file")
    return path


def _load(path: Path, *, weights: bool = True) -> tuple[ModelCard, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            header: Any = json.loads((file.metadata() or {}).get("pscl_hpc", "{}"))
            names = file.keys() if weights else ()
            tensors = {key: file.get_tensor(key) for key in names}
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise UserError(
            f"{path}: cannot be read as a safetensors file ({error}); copy or write it again"
        ) from None
    if not isinstance(header, dict) or "model" not in header:
        raise UserError(f"{path}: has no model description in its header; use a file written by pscl-hpc")
    try:
        card = ModelCard(
            TRUNKS.config(header["model"]["name"]).model_validate(header["model"]),
            tuple(str(name) for name in header.get("classes", ())),
            int(header.get("background", 0)),
            tuple(int(number) for number in header.get("ignore_classes", ())),
            float(header.get("resize", 1.0)),
            tuple(float(weight) for weight in header.get("class_weights", ())),
        )
    except (TypeError, ValueError, KeyError):
        raise UserError(
            f"{path}: the model description does not fit this version of pscl-hpc; train again"
        ) from None
    return card, tensors


def _fill(module: nn.Module, tensors: dict[str, Tensor], file: Path) -> None:
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise UserError(
            f"{file}: the weights do not fit the model description ({str(error).splitlines()[-1].strip()}); train again"
        ) from None
