"""Layers in forms that are faster on a CPU give torch's values and gradients."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pscl_hpc.models import build_trunk
from pscl_hpc.models.efficientnet_lite import EfficientNetLiteConfig
from pscl_hpc.models.heads import GroupedLinear
from pscl_hpc.models.layers import GroupNorm, UpConv, concatenate
from pscl_hpc.models.trunk import channels_last
from pscl_hpc.models.unet import UNetConfig

SHAPES = [(2, 16, 5, 7), (3, 24, 8, 8), (1, 8, 1, 3), (1, 16, 1, 1)]


def gradients(function, *inputs):
    """Output and gradients for a fixed random gradient of the output."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    output = function(*inputs)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [output, *torch.autograd.grad((output.double() * weight).sum(), inputs)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_group_norm(shape, last, offset):
    torch.manual_seed(0)
    weight, bias = torch.randn(2, shape[1], dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64) + offset
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    layer = GroupNorm(8, shape[1]).double()

    def ours(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, x)

    def theirs(x, weight, bias):
        return F.group_norm(x, 8, weight, bias, layer.eps)

    for found, wanted in zip(
        gradients(ours, x, weight, bias), gradients(theirs, x, weight, bias), strict=True
    ):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_group_norm_in_bfloat16_is_as_good_as_torch(shape):
    torch.manual_seed(0)
    layer = GroupNorm(8, shape[1])
    x = torch.randn(shape).bfloat16().contiguous(memory_format=torch.channels_last)
    truth = gradients(lambda x: F.group_norm(x, 8, eps=layer.eps), x.double())
    ours = gradients(layer, x)
    theirs = gradients(lambda x: nn.GroupNorm.forward(layer, x), x)
    for exact, found, wanted in zip(truth, ours, theirs, strict=True):
        assert found.dtype is torch.bfloat16
        limit = 1.5 * (wanted.double() - exact).abs().max() + 1e-3
        assert (found.double() - exact).abs().max() <= limit


def test_transposed_convolution():
    torch.manual_seed(0)
    ours = UpConv(6, 4, 3, stride=2, padding=1).double()
    theirs = nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    for found, wanted in zip(gradients(ours, x), gradients(theirs, x), strict=True):
        torch.testing.assert_close(found, wanted)
    for layer in (ours, theirs):
        layer(x).square().sum().backward()
    torch.testing.assert_close(ours.bias.grad, theirs.bias.grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


def test_concatenation_has_gradients_in_channels_last_memory():
    a, b = torch.randn(2, 3, 4, 5), torch.randn(2, 6, 4, 5)
    for found, wanted in zip(
        gradients(concatenate, a, b), gradients(lambda a, b: torch.cat((a, b), 1), a, b), strict=True
    ):
        torch.testing.assert_close(found, wanted)
    leaves = [x.requires_grad_() for x in (a, b)]
    for gradient in torch.autograd.grad(concatenate(*leaves).square().sum(), leaves):
        assert gradient.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "config",
    [UNetConfig, lambda **keys: EfficientNetLiteConfig(name="efficientnet-lite0", init="random", **keys)],
)
def test_a_trunk_computes_in_channels_last_memory(config, channels):
    """Also for grey images, whose strides fit both layouts, and also in the backward pass."""
    trunk = build_trunk(config(in_channels=channels))
    images = torch.rand(2, channels, 64, 64)
    assert torch.equal(channels_last(images), images)
    scales = trunk(images).scales
    for one in scales:
        assert one.is_contiguous(memory_format=torch.channels_last)
        assert not one.is_contiguous()
    loss = sum((one * torch.randn_like(one)).sum() for one in scales)
    with CopiesToChannelsFirst() as copies:
        loss.backward()
    assert copies.shapes == []


class CopiesToChannelsFirst(TorchDispatchMode):
    """Shapes of the maps of two images that are copied to channels-first memory."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        copied = func in (torch.ops.aten.clone.default, torch.ops.aten.copy_.default)
        if copied and result.dim() == 4 and len(result) == 2 and result.is_contiguous():
            self.shapes.append(result.shape)
        return result


@pytest.mark.parametrize(("inputs", "groups"), [(32, 4), (64, 4), (6, 1), (12, 6)])
def test_grouped_linear_is_a_grouped_convolution(inputs, groups):
    """Narrow groups and wide ones, which are computed in different ways."""
    torch.manual_seed(0)
    layer = GroupedLinear(inputs, 24, groups).double()

    def ours(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, x)

    def theirs(x, weight, bias):
        return F.conv1d(x.transpose(1, 2), weight.unsqueeze(2), bias, groups=groups).transpose(1, 2)

    x = torch.randn(3, 7, inputs, dtype=torch.float64)
    inputs = (x, layer.weight, layer.bias)
    for found, wanted in zip(gradients(ours, *inputs), gradients(theirs, *inputs), strict=True):
        torch.testing.assert_close(found, wanted)
