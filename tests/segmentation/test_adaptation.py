"""Batch normalisation with statistics of the predicted image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pscl_hpc.archive import Archive
from pscl_hpc.errors import UserError
from pscl_hpc.models import SegmentationNet
from pscl_hpc.models.unet import UNet, UNetConfig
from pscl_hpc.segmentation import finetune
from pscl_hpc.segmentation.config import InferenceConfig
from pscl_hpc.segmentation.inference import Predictor, Tiling, adapted, sample_windows
from pscl_hpc.segmentation.trained import open_run

from .helpers import THREE, reader, settings


def trained_net(dtype: torch.dtype = torch.float64) -> SegmentationNet:
    """A network with running statistics that differ from the initial ones."""
    torch.manual_seed(0)
    net = SegmentationNet(UNet(UNetConfig(widths=(4, 8))), 3).to(dtype)
    for _ in range(20):
        net(0.2 * torch.rand(2, 1, 32, 32, dtype=dtype) + 0.3)
    return net.eval()


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def in_block(net: SegmentationNet, share: float, images: Tensor) -> Tensor:
    with adapted(net, share, lambda: net(images)), torch.no_grad():
        return net(images)  # type: ignore[no-any-return]


def test_share_1_is_the_normalisation_of_training() -> None:
    net = trained_net()
    images = torch.rand(1, 1, 40, 56, dtype=torch.float64)
    found = in_block(net, 1.0, images)
    with torch.no_grad():
        expected = net.train()(images)
    # The statistics are taken in float32.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_share_one_half_averages_the_statistics_layer_by_layer() -> None:
    net = trained_net()
    images = torch.rand(2, 1, 32, 48, dtype=torch.float64)

    def by_hand(layer: nn.BatchNorm2d) -> Callable[[Tensor], Tensor]:
        mean, variance = layer.running_mean, layer.running_var
        assert mean is not None
        assert variance is not None
        kept_mean, kept_variance = mean.clone(), variance.clone()

        def forward(x: Tensor) -> Tensor:
            m = 0.5 * kept_mean + 0.5 * x.mean(dim=(0, 2, 3))
            v = 0.5 * kept_variance + 0.5 * ((x - x.mean(dim=(0, 2, 3), keepdim=True)) ** 2).mean(
                dim=(0, 2, 3)
            )
            normal = (x - m[:, None, None]) / torch.sqrt(v[:, None, None] + layer.eps)
            return normal * layer.weight[:, None, None] + layer.bias[:, None, None]

        return forward

    found = in_block(net, 0.5, images)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.forward = by_hand(layer)  # type: ignore[method-assign]
    with torch.no_grad():
        torch.testing.assert_close(found, net(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fails", ["nowhere", "in the pass", "in the block"])
def test_the_network_is_restored(fails: str) -> None:
    net = trained_net()
    before = state(net)
    images = torch.rand(1, 1, 32, 32, dtype=torch.float64)

    def forward() -> None:
        net(images)
        if fails == "in the pass":
            raise OSError("no image")

    try:
        with adapted(net, 0.5, forward):
            assert any(not torch.equal(value, before[name]) for name, value in net.state_dict().items())
            if fails == "in the block":
                raise OSError("no image")
    except OSError:
        assert fails != "nowhere"
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not net.training
    net(torch.rand(1, 1, 32, 32, dtype=torch.float64))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_share_1_removes_the_effect_of_exposure() -> None:
    """Brightness and contrast cancel in the first layer, except at its padded edges."""
    net = trained_net()
    images = torch.rand(1, 1, 48, 48, dtype=torch.float64)
    layer = next(layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d))
    seen: list[Tensor] = []
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output[0, :, 1:-1, 1:-1]))
    differences = {}
    for share in (0.0, 1.0):
        for picture in (images, 0.3 * images + 0.1):
            in_block(net, share, picture)
        first, second = seen[-3], seen[-1]
        differences[share] = float((first - second).abs().mean() / first.std())
    assert differences[0.0] > 0.5
    assert differences[1.0] < 0.1


@pytest.mark.parametrize("shape", [(1, 1), (3, 50), (40, 56), (130, 33), (70, 200)])
def test_images_of_any_size_are_predicted(shape: tuple[int, int]) -> None:
    net = trained_net(torch.float32)
    before = state(net)
    image = np.random.default_rng(0).random((1, *shape), np.float32)
    tiling = Tiling(tile=32, block=64)
    labels = Predictor(net, THREE, torch.device("cpu"), tiling=tiling, inference=InferenceConfig(adapt=0.5))(
        reader(image), *shape
    )
    assert labels.shape == shape
    assert labels.max() < 3
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_all_blocks_of_an_image_use_the_same_statistics() -> None:
    net = trained_net(torch.float32)
    image = np.random.default_rng(0).random((1, 64, 96), np.float32)
    image[:, :, 48:] *= 0.2
    seen = []
    layer = next(layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d))
    predict = Predictor(
        net,
        THREE,
        torch.device("cpu"),
        tiling=Tiling(tile=32, block=32),
        inference=InferenceConfig(adapt=0.5),
    )
    block = predict._block

    def watched(part: np.ndarray, sure: bool) -> tuple[np.ndarray, np.ndarray | None]:
        assert layer.running_mean is not None
        seen.append(tuple(layer.running_mean.tolist()))
        return block(part, sure)

    predict._block = watched  # type: ignore[method-assign]
    predict(reader(image), 64, 96)
    assert len(seen) == 6
    assert len(set(seen)) == 1


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (20, 32, [(0, 0, 20, 32)]),
        (32, 33, [(0, 0, 32, 32), (0, 1, 32, 32)]),
        (128, 256, [(16, 48, 32, 32), (16, 176, 32, 32), (80, 48, 32, 32), (80, 176, 32, 32)]),
    ],
)
def test_sample_windows(height: int, width: int, expected: list[tuple[int, int, int, int]]) -> None:
    assert sample_windows(height, width, 32) == expected


def test_a_network_without_batch_normalisation(archive_file: Path, tmp_path: Path) -> None:
    """The option is refused; a recipe that adapts where it can changes nothing."""
    model = {"widths": [4, 8], "norm": "instance"}
    adapting = settings(
        archive_file, tmp_path / "run", schedule={"steps": 1}, model=model, inference={"adapt": 0.1}
    )
    run = finetune(adapting)
    with pytest.raises(UserError, match="--adapt"):
        open_run(run.path, adapt=0.1)
    with Archive(archive_file) as archive:
        labels = [
            open_run(run.path, **options)[2].archive_image(archive, 0) for options in ({}, {"adapt": 0.0})
        ]
    np.testing.assert_array_equal(*labels)
