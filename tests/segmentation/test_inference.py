"""Sliding-window inference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pscl_hpc.models import SegmentationNet
from pscl_hpc.models.unet import UNet, UNetConfig
from pscl_hpc.segmentation import ClassList
from pscl_hpc.segmentation.config import InferenceConfig, Tta
from pscl_hpc.segmentation.inference import Predictor, Tiling

from .helpers import THREE, reader


class Pointwise(nn.Module):
    """Logits that depend only on the pixel; records the sizes of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = UNet(UNetConfig(widths=(4, 8)))
        self.sizes: list[tuple[int, int]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append((images.shape[2], images.shape[3]))
        return torch.cat([-((images - level) ** 2) * 50 for level in (0.1, 0.5, 0.9)], dim=1)


def unet(seed: int = 0, widths: tuple[int, ...] = (4, 8)) -> SegmentationNet:
    torch.manual_seed(seed)
    return SegmentationNet(UNet(UNetConfig(widths=widths)), 3)


@pytest.fixture(params=[(61, 83), (24, 100), (24, 24)])
def image(request: pytest.FixtureRequest) -> np.ndarray:
    height, width = request.param
    return np.random.default_rng(0).random((1, height, width), np.float32)


@pytest.mark.parametrize(
    "tiling", [Tiling(tile=24), Tiling(tile=24, overlap=0.5, block=32), Tiling(tile=16, block=16)]
)
def test_tiles_and_blocks_join_to_the_whole(image: np.ndarray, tiling: Tiling) -> None:
    net = Pointwise()
    predict = Predictor(net, THREE, torch.device("cpu"), tiling=tiling)  # type: ignore[arg-type]
    labels = predict(reader(image), *image.shape[1:])
    assert np.array_equal(
        labels, np.abs(image[0, None] - np.array([[[0.1]], [[0.5]], [[0.9]]])).argmin(axis=0)
    )
    assert max(max(size) for size in net.sizes) <= tiling.tile


@pytest.mark.parametrize("shape", [(33, 47), (48, 48), (9, 40)])
def test_an_image_within_one_tile_is_the_plain_forward_pass(shape: tuple[int, int]) -> None:
    net = unet()
    image = np.random.default_rng(1).random((1, *shape), np.float32)
    labels = Predictor(net, THREE, torch.device("cpu"), tiling=Tiling(tile=48))(reader(image), *shape)
    with torch.inference_mode():
        expected = net.eval()(torch.from_numpy(image)[None])[0].argmax(dim=0).numpy()
    assert np.array_equal(labels, expected)


def test_tiled_unet_agrees_with_the_whole_image() -> None:
    net = unet(2)
    image = np.random.default_rng(2).random((1, 150, 170), np.float32)
    whole = Predictor(net, THREE, torch.device("cpu"), tiling=Tiling(tile=256))(reader(image), 150, 170)
    tiled = Predictor(net, THREE, torch.device("cpu"), tiling=Tiling(tile=64))(reader(image), 150, 170)
    # Predictions differ near the zero-padded tile edges; the receptive field is about ten pixels.
    assert (whole == tiled).mean() > 0.97


class PlaceInTile(nn.Module):
    """Logits that depend only on the position in a tile of 16 x 16."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = UNet(UNetConfig(widths=(4, 8)))
        self.table = 2 * torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))

    def forward(self, images: Tensor) -> Tensor:
        return self.table.expand(len(images), -1, -1, -1)


@pytest.mark.parametrize("block", [64, 16])
def test_tiles_are_blended_by_a_gaussian_also_across_blocks(block: int) -> None:
    net = PlaceInTile()
    predict = Predictor(net, THREE, torch.device("cpu"), tiling=Tiling(tile=16, overlap=0.5, block=block))  # type: ignore[arg-type]
    labels = predict(reader(np.zeros((1, 32, 48), np.float32)), 32, 48)
    # Standard deviation of an eighth of the tile; weights are at least 0.001.
    bell = np.exp(-((np.arange(16) - 7.5) ** 2) / (2 * (16 / 8) ** 2))
    weighted = np.maximum(np.outer(bell, bell), 1e-3) * net.table.double().softmax(dim=0).numpy()
    blended = np.zeros((3, 32, 48))
    for top in range(0, 32 - 8, 8):
        for left in range(0, 48 - 8, 8):
            blended[:, top : top + 16, left : left + 16] += weighted
    np.testing.assert_array_equal(labels, blended.argmax(axis=0))


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (5, 3), (17, 2)])
def test_images_smaller_than_the_total_stride_are_predicted(shape: tuple[int, int]) -> None:
    net = unet(widths=(2, 4, 4, 8))
    image = np.random.default_rng(3).random((1, *shape), np.float32)
    labels = Predictor(net, THREE, torch.device("cpu"))(reader(image), *shape)
    assert labels.shape == shape
    assert labels.dtype == np.uint8


def test_an_ignored_class_is_never_predicted() -> None:
    classes = ClassList(("matrix", "phase", "void"), 0, (1,))
    image = np.full((1, 20, 20), 0.5, np.float32)
    labels = Predictor(Pointwise(), classes, torch.device("cpu"))(reader(image), 20, 20)  # type: ignore[arg-type]
    assert 1 not in labels


def test_prediction_does_not_change_the_network() -> None:
    net = unet()
    net.train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    Predictor(net, THREE, torch.device("cpu"))(reader(np.zeros((1, 32, 32), np.float32)), 32, 32)
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("shape", [(48, 48), (32, 56), (41, 59)])
@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("tta", ["rotations", "scales"])
def test_test_time_augmentation_is_equivariant(
    shape: tuple[int, int], turns: int, mirrored: bool, tta: Tta
) -> None:
    image = np.random.default_rng(1).random((1, *shape), np.float32)
    changed = np.rot90(image[:, :, ::-1] if mirrored else image, turns, (1, 2)).copy()

    def labels_of(image: np.ndarray, tta: Tta) -> np.ndarray:
        net = unet().double()
        net.register_forward_pre_hook(lambda _, inputs: inputs[0].double())
        predict = Predictor(net, THREE, torch.device("cpu"), inference=InferenceConfig(tta=tta))
        return predict(reader(image), *image.shape[1:])

    plain, averaged = labels_of(image, "none"), labels_of(image, tta)
    expected = np.rot90(averaged[:, ::-1] if mirrored else averaged, turns)
    assert np.array_equal(labels_of(changed, tta), expected)
    assert not np.array_equal(plain, averaged)


@pytest.mark.parametrize(("side", "sizes"), [(20, {16, 20, 25}), (18, {18, 22}), (10, {16, 20})])
def test_magnifications_that_the_network_cannot_process_are_left_out(side: int, sizes: set[int]) -> None:
    net, seen = unet(widths=(2, 2, 2, 2, 2)), set()
    assert net.trunk.maps.bottleneck.stride == 16
    net.register_forward_pre_hook(lambda _, inputs: seen.add(inputs[0].shape[2]))
    image = np.random.default_rng(2).random((1, side, side), np.float32)
    found = Predictor(net, THREE, torch.device("cpu"), inference=InferenceConfig(tta="scales"))
    assert found(reader(image), side, side).shape == (side, side)
    assert seen == sizes


def test_test_time_augmentation_averages_probabilities() -> None:
    """The vertical gradient of a network's logits cancels."""

    class Upright(Pointwise):
        def forward(self, images: Tensor) -> Tensor:
            height = images.shape[2]
            slope = torch.linspace(-1, 1, height).view(1, 1, height, 1).expand_as(images)
            return torch.cat([slope, torch.full_like(images, 0.01), torch.full_like(images, -9.0)], dim=1)

    image = np.zeros((1, 16, 16), np.float32)
    labels = [
        Predictor(Upright(), THREE, torch.device("cpu"), inference=InferenceConfig(tta=tta))(  # type: ignore[arg-type]
            reader(image), 16, 16
        )
        for tta in ("none", "rotations")
    ]
    assert set(labels[0].ravel().tolist()) == {0, 1}
    assert np.array_equal(labels[1], labels[1][::-1])
    assert np.array_equal(labels[1], labels[1].T)
