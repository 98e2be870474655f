"""Layers of torch in forms that are faster on a CPU, in channels-last memory. Parameters and values are torch's.

Shape legend: B images, C channels, h w pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class UpConv(nn.ConvTranspose2d):
    """A transposed convolution that adds its bias afterwards: on a CPU that takes half of the time."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        assert self.bias is not None
        assert not isinstance(self.padding, str)
        x = F.conv_transpose2d(input, self.weight, None, self.stride, self.padding, self.output_padding)
        return x + self.bias.to(x.dtype).view(-1, 1, 1)


def concatenate(a: Tensor, b: Tensor) -> Tensor:
    """Maps (B, C, h, w) and (B, C', h, w) as (B, C + C', h, w)."""
    if a.device.type != "cpu" or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.cat((a, b), dim=1)
    found: Tensor = _Concatenate.apply(a, b)  # type: ignore[no-untyped-call]
    return found


class _Concatenate(torch.autograd.Function):
    """Concatenation whose gradients are not views: upsampling has a slow backward pass for those."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.channels = a.shape[1]
        return torch.cat((a, b), dim=1)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        first, second = dy[:, : ctx.channels], dy[:, ctx.channels :]
        return (
            first.contiguous(memory_format=torch.channels_last),
            second.contiguous(memory_format=torch.channels_last),
        )


class GroupNorm(nn.GroupNorm):
    """``nn.GroupNorm``; training in channels-last memory on a CPU takes half of its time, in bfloat16 a sixth."""

    def forward(self, input: Tensor) -> Tensor:
        slow = (
            input.device.type == "cpu"
            and torch.is_grad_enabled()
            and not input.is_contiguous()
            and input.is_contiguous(memory_format=torch.channels_last)
        )
        if not slow or torch.compiler.is_compiling():
            return super().forward(input)
        found: Tensor = _ChannelsLast.apply(  # type: ignore[no-untyped-call]
            input, self.weight, self.bias, self.num_groups, self.eps
        )
        return found


class _ChannelsLast(torch.autograd.Function):
    """Group normalisation of (B, C, h, w) with weight and bias (C,)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        batch, channels, height, width = x.shape
        y, mean, scale = torch.native_group_norm(
            x, weight, bias, batch, channels, height * width, groups, eps
        )
        ctx.save_for_backward(x, weight, mean, scale)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, mean, scale = ctx.saved_tensors
        batch, channels, height, width = x.shape
        groups = mean.shape[1]
        each = channels // groups
        precise = torch.promote_types(x.dtype, torch.float32)
        mean, scale = (part.to(precise).repeat_interleave(each, dim=1) for part in (mean, scale))  # (B, C)
        dy = dy.contiguous(memory_format=torch.channels_last)
        # The sums over the pixels of an image, of dy and of dy times the normalised x: (B, C).
        sums = [
            torch.ops.aten.native_batch_norm_backward(
                dy[i : i + 1],
                x[i : i + 1],
                weight,
                None,
                None,
                mean[i],
                scale[i],
                True,
                0.0,
                [False, True, True],
            )[1:]
            for i in range(batch)
        ]
        of_product, of_dy = (torch.stack(part).to(precise) for part in zip(*sums, strict=True))
        count = height * width * each

        def over_group(values: Tensor) -> Tensor:
            total = (values * weight).view(batch, groups, each).sum(dim=2)
            result: Tensor = (total / count).repeat_interleave(each, dim=1)
            return result

        # dx = scale * (weight * dy - mean of weight * dy - normalised x * mean of weight * dy * normalised x)
        slope = -scale.square() * over_group(of_product)
        constant = -scale * over_group(of_dy) - mean * slope
        by_dy, by_x, rest = (part[:, :, None, None] for part in (scale * weight, slope, constant))
        dx: Tensor = torch.addcmul(rest, x.to(precise), by_x).addcmul_(dy.to(precise), by_dy).to(x.dtype)
        return dx, of_product.sum(dim=0).to(weight), of_dy.sum(dim=0).to(weight), None, None
