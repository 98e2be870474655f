"""A fine-tuned run as an ONNX file for other programs, checked against this one.

The graph has one input, ``image``: (1, channels, h, w) float32 in 0..1, where 0 is black and 1 white (8-bit images
divided by 255), of any size that is not smaller than the stride of the network after ``resize``. Standardisation,
resizing and normalisation are inside, so the whole image belongs into one call: a tile would be standardised by itself.
Outputs: ``classes`` (1, h, w) uint8, the class indices, and ``probabilities`` (1, classes, h, w) float32, 0 for ignored
classes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pscl_hpc.archive.reader import STANDARD_DEVIATION
from pscl_hpc.errors import JobError, UserError
from pscl_hpc.files import replacing, writing
from pscl_hpc.grey import LUMA
from pscl_hpc.models import SegmentationNet
from pscl_hpc.segmentation.classes import ClassList
from pscl_hpc.segmentation.inference import Predictor
from pscl_hpc.segmentation.trained import open_run
from pscl_hpc.working_size import resized

ONNX_FILE = "model.onnx"
OPSET = 18
TOLERANCE = 1e-3
"""Largest difference of a probability; single precision in another order of summation gives about 1e-5."""
_FEW = 1e-3
"""Largest share of pixels whose class differs: those where two classes are equally probable."""


@dataclass(frozen=True)
class Exported:
    """The file, and how far its answers were from those of the run."""

    path: Path
    largest_difference: float
    """Of a probability, over all checked images."""
    different_pixels: float
    """Share of pixels with another class."""
    sizes: tuple[tuple[int, int], ...]
    """Checked sizes of images."""


class ExportNet(nn.Module):
    """An image (1, channels, h, w) in 0..1 to its class indices and class probabilities, with all preprocessing."""

    kept: Tensor
    place: Tensor
    luma: Tensor

    def __init__(
        self, net: SegmentationNet, classes: ClassList, resize: float = 1.0, kept: tuple[int, ...] = ()
    ) -> None:
        """See the class; ``kept`` are the classes that are predicted, by default all but the ignored ones."""
        super().__init__()
        self.net = net
        self.resize = resize
        self.standardise = net.trunk.config.standardise
        kept = kept or classes.kept
        self.register_buffer("kept", torch.tensor(kept), persistent=False)
        # One row per class; an ignored class has no column, so its probability is 0.
        place = torch.zeros(classes.count, len(kept))
        place[list(kept), torch.arange(len(kept))] = 1
        self.register_buffer("place", place[:, :, None, None], persistent=False)
        self.register_buffer("luma", torch.tensor(LUMA)[None, :, None, None], persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        if self.standardise:
            image = self._standardised(image)
        work = resized(image, self.resize, 1)
        probabilities = F.softmax(self.net(work).index_select(1, self.kept), dim=1)
        if self.resize != 1:
            size = image.shape[2:]
            probabilities = F.interpolate(probabilities, size=size, mode="bilinear", align_corners=False)
        classes = self.kept[probabilities.argmax(dim=1)]
        return classes.to(torch.uint8), F.conv2d(probabilities, self.place)

    def _standardised(self, image: Tensor) -> Tensor:
        """As ``Archive.read_unit`` does with the whole image."""
        grey = image if image.shape[1] == 1 else (image * self.luma).sum(dim=1, keepdim=True)
        mean = grey.mean()
        deviation = ((grey - mean) ** 2).mean().sqrt()
        deviation = torch.where(deviation > 1e-4, deviation, torch.ones_like(deviation))
        return (0.5 + (image - mean) * (float(STANDARD_DEVIATION) / deviation)).clamp(0, 1)


def export_onnx(run: str | Path, out: str | Path | None = None) -> Exported:
    """Write ``model.onnx`` and compare it, in onnxruntime on the CPU, with the run.

    Args:
        run: A finished fine-tuning run.
        out: The file, by default ``RUN/model.onnx``; replaced if it exists.

    Raises:
        UserError: the run is not a finished fine-tuning run, or the extra ``onnx`` is missing.
        JobError: the exported model gives other answers; nothing is written.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"export needs the package {name}; pip install 'pscl-hpc[onnx]'")
    folder, _, predictor = open_run(run)
    if not isinstance(predictor, Predictor):
        raise UserError(
            f"{folder.path}: is a pixel classifier; export writes networks, name a fine-tuning run"
        )
    path = Path(out) if out is not None else folder.path / ONNX_FILE
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"{path}: is a folder, or is in one that does not exist; name a file with --out")
    net = ExportNet(predictor.net.cpu(), predictor.classes, predictor.resize, predictor.kept).eval()
    model = _convert(net, predictor.channels, predictor.classes)
    data = model.SerializeToString()
    exported = _check(net, data, predictor.channels, net.net.trunk.maps.bottleneck.stride, path)
    with writing(path), replacing(path) as temporary:
        temporary.write_bytes(data)
    return exported


def _convert(net: ExportNet, channels: int, classes: ClassList) -> Any:
    """The ONNX model with its description in the metadata."""
    example = torch.rand(1, channels, 160, 192)
    axes = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    # The exporter prints its progress, and warns that torchvision, which is not needed, is missing.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            net,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["classes", "probabilities"],
            dynamic_shapes=(axes,),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    about = {
        "classes": json.dumps(list(classes.names)),
        "background": str(classes.background),
        "ignored_classes": json.dumps(list(classes.ignored)),
        "input": f"image: (1, {channels}, h, w) float32, black 0, white 1 (8-bit images divided by 255), whole images",
        "standardisation": "inside" if net.standardise else "none",
    }
    for key, value in about.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    return model


def _check(net: ExportNet, data: bytes, channels: int, stride: int, path: Path) -> Exported:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    seen = ((stride, stride), (5 * stride + 3, 7 * stride + 1), (200, 264))
    sizes = tuple((math.ceil(height / net.resize), math.ceil(width / net.resize)) for height, width in seen)
    largest, wrong, pixels = 0.0, 0, 0
    for image in _samples(channels, sizes):
        with torch.no_grad():
            classes, probabilities = (part.numpy() for part in net(torch.from_numpy(image)))
        other, odds = session.run(["classes", "probabilities"], {"image": image})
        if odds.shape != probabilities.shape or other.shape != classes.shape:
            raise JobError(f"{path}: the exported model gives {odds.shape}, not {probabilities.shape}")
        largest = max(largest, float(np.abs(odds - probabilities).max()))
        wrong += int((other != classes).sum())
        pixels += classes.size
    if not largest <= TOLERANCE or wrong > _FEW * pixels:
        raise JobError(
            f"{path}: the exported model differs from the run by {largest:.2g} in a probability and in {wrong} of {pixels} "
            "pixels; nothing was written; report this with the versions of torch and onnxruntime"
        )
    return Exported(path, largest, wrong / pixels, sizes)


def _samples(channels: int, sizes: Sequence[tuple[int, int]]) -> list[npt.NDArray[np.float32]]:
    """Noise on a slope, a dark and a constant image, (1, channels, h, w)."""
    rng = np.random.default_rng(0)
    found = []
    for height, width in sizes:
        slope = np.linspace(0, 1, width, dtype=np.float32)
        image = 0.5 * slope + 0.5 * rng.random((1, channels, height, width), dtype=np.float32)
        found += [image, 0.1 * image]
    return [*found, np.full((1, channels, *sizes[0]), 0.4, np.float32)]
