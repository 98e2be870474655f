"""Segmentation of images of any size in bounded memory, optionally adapted to the image.

Adaptation mixes the training statistics of batch normalisation with those of the image (Schneider et al. 2020, section
3; with the image's statistics alone, Nado et al. 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pscl_hpc.archive import Archive, Window
from pscl_hpc.config import RuntimeConfig
from pscl_hpc.models import SegmentationNet
from pscl_hpc.segmentation.classes import ClassList
from pscl_hpc.segmentation.config import InferenceConfig
from pscl_hpc.segmentation.shading import ReadWindow, corrected
from pscl_hpc.training import autocast
from pscl_hpc.working_size import resized

_MAGNIFICATIONS = (0.8, 1.0, 1.25)


@dataclass(frozen=True)
class Tiling:
    """How a large image is divided; all lengths in pixels."""

    tile: int = 512
    """Side of the windows that the network processes. An image up to this size is one window."""
    overlap: float = 0.25
    """Fraction of a tile that overlaps the next one. Probabilities are blended with Gaussian weights."""
    block: int = 2048
    """Side of the parts that are read and blended at once; limits the memory."""


class Predictor:
    """Predicts class indices with a segmentation network.

    All windows are inside the image, so there is no padding, except that an image smaller than the network's total
    stride is mirrored at its edges.
    """

    def __init__(
        self,
        net: SegmentationNet,
        classes: ClassList,
        device: torch.device,
        *,
        runtime: RuntimeConfig | None = None,
        tiling: Tiling | None = None,
        inference: InferenceConfig | None = None,
        resize: float = 1.0,
        unseen: Collection[str] = (),
        class_weights: Sequence[float] = (),
    ) -> None:
        """See the class.

        Args:
            net: The network; each call uses its current weights.
            classes: The classes of its output channels.
            device: The device of ``net``.
            runtime: Precision of the network.
            tiling: How large images are divided.
            inference: Test-time augmentation, adaptation to each image, correction of shading, class weights; by default
                one plain pass.
            resize: Factor by which images are resized for the network. Tiles have their size after it.
            unseen: Classes without a pixel in the training; they are never predicted, as ignored ones.
            class_weights: Weights of the cross entropy in the training, one per class, for ``inference.unweighted``.
        """
        self.net = net
        self.classes = classes
        self.device = device
        self.runtime = runtime or RuntimeConfig()
        self.tiling = tiling or Tiling()
        self.inference = inference or InferenceConfig()
        self.resize = resize
        self.channels = net.trunk.in_channels
        self.standardise = net.trunk.config.standardise
        self._smallest = net.trunk.maps.bottleneck.stride
        self.kept = tuple(index for index in classes.kept if classes.names[index] not in unseen)
        self._kept = torch.tensor(self.kept, device=device)
        weights = torch.tensor([class_weights[index] if class_weights else 1.0 for index in self.kept])
        self._log_weights = weights.log().to(device).view(-1, 1, 1)

    def __call__(
        self,
        read: ReadWindow,
        height: int,
        width: int,
        *,
        confidence: npt.NDArray[np.uint8] | None = None,
    ) -> npt.NDArray[np.uint8]:
        """Class indices (height, width) of an image; ignored and unseen classes are never predicted.

        Args:
            read: Reads any window of the image.
            height: Height of the image in pixels.
            width: Width of the image in pixels.
            confidence: (height, width), filled with the probability of the predicted class, 0 to 255.
        """
        labels = np.empty((height, width), np.uint8)
        if self.inference.correct_shading:
            read = corrected(read, height, width, standardise=self.standardise)
        was_training = self.net.training
        self.net.eval()
        try:
            with self._adapted(read, height, width):
                self._fill(labels, read, confidence)
        finally:
            self.net.train(was_training)
        return labels

    def archive_image(
        self, archive: Archive, index: int, *, confidence: npt.NDArray[np.uint8] | None = None
    ) -> npt.NDArray[np.uint8]:
        """Class indices (h, w) of an archive image, which is read in parts; ``confidence`` as in a call."""
        record = archive.records[index]

        def read(window: Window) -> npt.NDArray[np.float32]:
            return archive.read_unit(index, window, channels=self.channels, standardise=self.standardise)

        return self(read, record.height, record.width, confidence=confidence)

    def _adapted(self, read: ReadWindow, height: int, width: int) -> AbstractContextManager[None]:
        """A block in which the network is adapted to an image, as ``inference.adapt`` says."""
        if not self.inference.adapt or not batch_norms(self.net):
            return nullcontext()
        windows = sample_windows(height, width, round(self.tiling.tile / self.resize))

        def forward() -> None:
            images = torch.cat([self._resized(self._inputs(read(window))) for window in windows])
            with autocast(self.device, self.runtime):
                self.net(images.to(self.device))

        return adapted(self.net, self.inference.adapt, forward)

    def _fill(
        self, labels: npt.NDArray[np.uint8], read: ReadWindow, confidence: npt.NDArray[np.uint8] | None
    ) -> None:
        block, halo = self.tiling.block, round(self.tiling.tile * self.tiling.overlap / self.resize)
        height, width = labels.shape
        for y0 in range(0, height, block):
            for x0 in range(0, width, block):
                y1, x1 = min(y0 + block, height), min(x0 + block, width)
                top, left = max(0, y0 - halo), max(0, x0 - halo)
                bottom, right = min(height, y1 + halo), min(width, x1 + halo)
                part, sure = self._block(
                    read((top, left, bottom - top, right - left)), confidence is not None
                )
                inner = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
                labels[y0:y1, x0:x1] = part[inner]
                if confidence is not None and sure is not None:
                    confidence[y0:y1, x0:x1] = sure[inner]

    def _inputs(self, image: npt.NDArray[np.float32]) -> Tensor:
        """The image as (1, C, h, w), mirrored at the far edges if it is smaller than the total stride."""
        rim = tuple((0, max(0, self._smallest - size)) for size in image.shape[1:])
        return torch.from_numpy(np.pad(image, ((0, 0), *rim), mode="symmetric")).unsqueeze(0)

    def _resized(self, images: Tensor) -> Tensor:
        return resized(images, self.resize, self._smallest)

    @torch.inference_mode()
    def _block(
        self, image: npt.NDArray[np.float32], sure: bool
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8] | None]:
        """Class indices of a part of an image and, if ``sure``, the probability of each as 0 to 255."""
        height, width = image.shape[1:]
        given = self._inputs(image)
        inputs = self._resized(given)
        roi = tuple(min(self.tiling.tile, size) for size in inputs.shape[2:])
        if roi == tuple(inputs.shape[2:]):
            blended = self._probabilities(inputs.to(self.device))
        else:
            # Imported here: commands that predict nothing need not wait for it.
            from monai.inferers.utils import sliding_window_inference

            blended = sliding_window_inference(  # type: ignore[assignment]
                inputs,
                roi,
                1,
                self._probabilities,
                overlap=self.tiling.overlap,
                mode="gaussian",
                sw_device=self.device,
                device=torch.device("cpu"),
            )
        if self.resize != 1:
            blended = F.interpolate(blended, size=given.shape[2:], mode="bilinear", align_corners=False)
        best = self._kept.to(blended.device)[blended[0].argmax(dim=0)]
        labels = best[:height, :width].to("cpu", torch.uint8).numpy()
        if not sure:
            return labels, None
        highest = blended[0].amax(dim=0)[:height, :width].clamp(0, 1)
        return labels, (highest * 255).round().to("cpu", torch.uint8).numpy()

    def _probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities (B, K, h, w), averaged as ``inference.tta`` says: micrographs have no preferred
        orientation, and features of one kind differ in size."""
        if self.inference.tta == "none":
            return self._softmax(images)
        total, views = torch.zeros((), device=images.device), 0
        for factor in _MAGNIFICATIONS if self.inference.tta == "scales" else (1.0,):
            size = [round(side * factor) for side in images.shape[2:]]
            if factor != 1 and min(size) < self._smallest:
                continue
            for turns, mirrored in product(range(4), (False, True)):
                view = _to_size(images, size)
                view = torch.rot90(view.flip(3) if mirrored else view, turns, (2, 3))
                back = torch.rot90(self._softmax(view), -turns, (2, 3))
                total = total + _to_size(back.flip(3) if mirrored else back, images.shape[2:])
                views += 1
        return total / views

    def _softmax(self, images: Tensor) -> Tensor:
        with autocast(self.device, self.runtime):
            logits = self.net(images)
        logits = logits.float().index_select(1, self._kept)
        if self.inference.unweighted:
            # The weighted cross entropy is smallest where the probability of a class is proportional to its weight times
            # its share among like pixels (as for other shares: Saerens, Latinne and Decaestecker 2002, equation 2.4).
            logits = logits - self._log_weights
        return F.softmax(logits, dim=1)


def _to_size(images: Tensor, size: Sequence[int]) -> Tensor:
    if images.shape[2:] == torch.Size(size):
        return images
    shrunk = size[0] < images.shape[2]
    return F.interpolate(images, size=tuple(size), mode="bilinear", align_corners=False, antialias=shrunk)


def sample_windows(height: int, width: int, tile: int) -> list[tuple[int, int, int, int]]:
    """Windows (y0, x0, height, width) that represent an image: all of it, or the centres of its quarters, in pixels."""
    rows, columns = _starts(height, tile), _starts(width, tile)
    return [(y, x, min(tile, height), min(tile, width)) for y in rows for x in columns]


def _starts(length: int, tile: int) -> list[int]:
    if length <= tile:
        return [0]
    return [min(max(0, round(share * length - tile / 2)), length - tile) for share in (0.25, 0.75)]


def batch_norms(net: nn.Module) -> list[nn.BatchNorm2d]:
    """The layers that can be adapted to an image."""
    return [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)]


@contextmanager
def adapted(net: nn.Module, share: float, forward: Callable[[], Any]) -> Iterator[None]:
    """A block in which batch normalisation uses ``(1 - share) * training + share * forward`` statistics.

    Each layer takes its statistics from the output of the already adapted layers before it. The network is restored
    after the block.

    Args:
        net: A network in evaluation mode.
        share: Weight of the new statistics, 0 to 1.
        forward: Runs ``net`` on the images to adapt to.
    """
    layers = batch_norms(net)
    trained = [[value.clone() for value in _statistics(layer)] for layer in layers]

    def mix(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        variance, mean = torch.var_mean(inputs[0].float(), dim=(0, 2, 3), correction=0)
        for value, new in zip(_statistics(layer), (mean, variance), strict=True):
            value.lerp_(new.to(value), share)

    handles = [layer.register_forward_pre_hook(mix) for layer in layers]
    try:
        try:
            with torch.no_grad():
                forward()
        finally:
            for handle in handles:
                handle.remove()
        yield
    finally:
        for layer, before in zip(layers, trained, strict=True):
            for value, kept in zip(_statistics(layer), before, strict=True):
                value.copy_(kept)


def _statistics(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Running mean and variance, (channels,) each."""
    mean, variance = layer.running_mean, layer.running_var
    assert isinstance(mean, Tensor)
    assert isinstance(variance, Tensor)
    return mean, variance
