"""U-Net trunk, heads and weights files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from pscl_hpc.errors import UserError
from pscl_hpc.models import (
    GlobalHead,
    ModelCard,
    PatchHead,
    SegmentationNet,
    checkpoint_blocks,
    load_segmentation,
    load_trunk,
    read_card,
    save_segmentation,
    save_trunk,
)
from pscl_hpc.models.unet import UNet, UNetConfig

SMALL = UNetConfig(widths=(4, 8, 8))


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def test_sizes_of_the_paper() -> None:
    """As released: trunk 2,142,016 parameters, heads 50,976, segmentation head 132."""
    trunk = UNet(UNetConfig(in_channels=3))
    heads = [PatchHead(width, hidden=128, projection=64, groups=4) for width, _ in trunk.maps.scales]
    assert count(trunk) == 2_142_016
    assert count(*heads, GlobalHead(256, hidden=128, projection=64)) == 50_976
    assert count(SegmentationNet(trunk, 4)) - count(trunk) == 132


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (4, 9), (17, 4)])
def test_any_size(size: tuple[int, int]) -> None:
    trunk = UNet(SMALL)
    features = trunk(torch.rand(2, 1, *size))
    assert features.bottleneck.shape == (2, 8, size[0] // 4, size[1] // 4)
    assert [tuple(f.shape[1:]) for f in features.scales] == [(8, size[0] // 2, size[1] // 2), (4, *size)]


@pytest.mark.parametrize("size", [(16, 24), (21, 15)])
def test_trunk_is_the_published_network(size: tuple[int, int]) -> None:
    """Reference with functions: pooling, transposed convolution to 2H - 1, padding, concatenation with the skip."""
    trunk = UNet(UNetConfig(widths=(4, 8, 12), mean=(0.4,), std=(0.5,)))
    with torch.no_grad():
        for weight in trunk.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    weights = dict(trunk.named_parameters())

    def block(name: str, x: torch.Tensor, *, second_over_batch: bool) -> torch.Tensor:
        for place, over_batch in ((0, True), (3, second_over_batch)):
            x = F.conv2d(x, weights[f"{name}.{place}.weight"], padding=1)
            dims = (0, 2, 3) if over_batch else (1,)
            variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
            gain, bias = (weights[f"{name}.{place + 1}.{part}"].view(-1, 1, 1) for part in ("weight", "bias"))
            x = (x - mean) / (variance + 1e-5).sqrt() * gain + bias
            x = torch.where(x > 0, x, 0.01 * x)
        return x

    images = torch.rand(2, 1, *size)
    x, maps = (images - 0.4) / 0.5, []
    for depth in range(3):
        x = block(f"encoder.{depth}", F.max_pool2d(x, 2) if depth else x, second_over_batch=True)
        maps.append(x)
    scales = []
    for number, skip in enumerate((maps[1], maps[0])):
        name = f"decoder.{number}"
        up = F.conv_transpose2d(
            x, weights[f"{name}.up.weight"], weights[f"{name}.up.bias"], stride=2, padding=1
        )
        assert up.shape[2:] == (2 * x.shape[2] - 1, 2 * x.shape[3] - 1)
        full = torch.zeros(*up.shape[:2], *skip.shape[2:])
        # One row or column is missing at the end if the skip is even, and one on each side if it is odd.
        first = [(have - got) // 2 for have, got in zip(skip.shape[2:], up.shape[2:], strict=True)]
        full[:, :, first[0] : first[0] + up.shape[2], first[1] : first[1] + up.shape[3]] = up
        x = block(f"{name}.block", torch.cat((skip, full), dim=1), second_over_batch=False)
        scales.append(x)
    features = trunk(images)
    torch.testing.assert_close(features.bottleneck, maps[2], atol=1e-4, rtol=1e-4)
    for found, wanted in zip(features.scales, scales, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_patch_head_equals_grouped_convolutions() -> None:
    head = PatchHead(8, hidden=12, projection=8, groups=4)
    expand = nn.Conv2d(8, 8, 1, groups=4)
    project = nn.Conv2d(8, 8, 1, groups=4)
    for conv, part in ((expand, head.expand), (project, head.project)):
        conv.weight.data.copy_(part.weight.data.view_as(conv.weight))
        conv.bias.data.copy_(part.bias.data)  # type: ignore[union-attr]
    patches = torch.rand(2, 8, 5, 6)
    normed = head.norm(expand(patches).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    expected = project(torch.relu(normed)).permute(0, 2, 3, 1)
    torch.testing.assert_close(head(patches.permute(0, 2, 3, 1)), expected, atol=1e-6, rtol=1e-5)


def test_groups_must_divide() -> None:
    with pytest.raises(ValueError, match="groups"):
        PatchHead(6, hidden=128, projection=64, groups=4)


def test_intensity_normalisation_is_part_of_the_trunk() -> None:
    trunk = UNet(UNetConfig(widths=(4, 8), mean=(0.3,), std=(0.2,))).eval()
    plain = UNet(UNetConfig(widths=(4, 8), mean=(0.0,), std=(1.0,))).eval()
    plain.load_state_dict(trunk.state_dict())
    image = torch.rand(1, 1, 16, 16)
    torch.testing.assert_close(trunk(image).scales[0], plain((image - 0.3) / 0.2).scales[0])


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_other_normalisations_leave_the_windows_of_a_batch_independent(norm: Any) -> None:
    trunk = UNet(UNetConfig(widths=(4, 12), norm=norm)).train()
    images = torch.rand(3, 1, 16, 24)
    together, alone = trunk(images), trunk(images[1:2])
    torch.testing.assert_close(together.scales[-1][1:2], alone.scales[-1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(trunk.eval()(images).bottleneck, together.bottleneck)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in trunk.modules())


def test_instance_and_group_normalisation_are_those_of_the_literature() -> None:
    for norm, groups in (("instance", 12), ("group", 4)):
        trunk = UNet(UNetConfig(widths=(12, 12), norm=norm))
        # Instance normalisation is per channel; eight groups do not divide 12 channels, four do.
        x = torch.randn(2, 12, 5, 7)
        mean = x.view(2, groups, -1).mean(2).view(2, groups, 1, 1, 1)
        variance = x.view(2, groups, -1).var(2, correction=0).view(2, groups, 1, 1, 1)
        expected = ((x.view(2, groups, -1, 5, 7) - mean) / (variance + 1e-5).sqrt()).view_as(x)
        torch.testing.assert_close(trunk.encoder[0][1](x), expected, atol=1e-5, rtol=1e-4)


def test_a_window_with_one_value_to_normalise_is_refused() -> None:
    UNetConfig(widths=(4, 8, 8), norm="instance").check_window("crop", (4, 8), 1)
    UNetConfig(widths=(4, 8, 16), norm="group").check_window("crop", (4, 4), 2)
    for norm in ("instance", "group"):
        with pytest.raises(ValueError, match="crop"):
            UNetConfig(widths=(4, 8, 8), norm=norm).check_window("crop", (4, 4), 2)


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_other_normalisations_can_be_recomputed_and_stored(tmp_path: Path, norm: Any) -> None:
    trunk = UNet(UNetConfig(widths=(4, 8), norm=norm))
    save_trunk(tmp_path / "trunk.safetensors", trunk)
    again = load_trunk(tmp_path)
    checkpoint_blocks(again)
    image = torch.rand(2, 1, 16, 16)
    for one in (trunk, again):
        one(image).scales[-1].square().mean().backward()
    for one, other in zip(trunk.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_weights_round_trip(tmp_path: Path) -> None:
    net = SegmentationNet(UNet(SMALL), 3).eval()
    net(torch.rand(1, 1, 16, 16))
    card = ModelCard(SMALL, ("a", "b", "c"), 0, (2,))
    save_segmentation(tmp_path / "model.safetensors", net, card)
    loaded, found = load_segmentation(tmp_path)
    assert found == card
    image = torch.rand(1, 1, 20, 24)
    assert torch.equal(loaded.eval()(image), net(image))
    trunk = load_trunk(tmp_path / "model.safetensors").eval()
    assert torch.equal(trunk(image).bottleneck, net.trunk(image).bottleneck)
    save_trunk(tmp_path / "trunk.safetensors", net.trunk)
    assert torch.equal(load_trunk(tmp_path).eval()(image).bottleneck, net.trunk(image).bottleneck)


def test_the_card_can_be_read_without_the_weights(tmp_path: Path) -> None:
    net = SegmentationNet(UNet(UNetConfig(widths=(4, 8))), 2)
    card = ModelCard(net.trunk.config, ("matrix", "phase"), 1)
    save_segmentation(tmp_path / "model.safetensors", net, card)
    assert read_card(tmp_path) == card
    save_trunk(tmp_path / "alone.safetensors", net.trunk)
    assert read_card(tmp_path / "alone.safetensors") == ModelCard(net.trunk.config)


def test_files_without_a_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.safetensors"):
        load_trunk(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match=r"trunk\.safetensors or model\.safetensors"):
        load_trunk(tmp_path)
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(UserError, match=r"text\.safetensors"):
        load_trunk(tmp_path / "text.safetensors")
    save_file({"x": torch.ones(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match=r"foreign\.safetensors.*header"):
        load_trunk(tmp_path / "foreign.safetensors")
    save_trunk(tmp_path / "trunk.safetensors", UNet(SMALL))
    with pytest.raises(UserError, match=r"trunk\.safetensors.*classifier"):
        load_segmentation(tmp_path / "trunk.safetensors")


@pytest.mark.parametrize(
    "header",
    [
        "3",
        '["model"]',
        '{"model": {"widths": [4]}}',
        '{"model": {"name": "none"}}',
        '{"model": {"name": "unet", "widths": [4]}}',
        '{"model": {"name": "unet"}, "classes": 3}',
        '{"model": {"name": "unet"}, "background": "matrix"}',
        '{"model": {"name": "unet"}, "ignore_classes": [null]}',
    ],
)
def test_headers_without_a_model_description_are_refused(tmp_path: Path, header: str) -> None:
    file = tmp_path / "odd.safetensors"
    save_file({"x": torch.ones(1)}, file, metadata={"pscl_hpc": header})
    with pytest.raises(UserError, match=r"odd\.safetensors"):
        read_card(file)
