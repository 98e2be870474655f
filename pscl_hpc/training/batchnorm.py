"""Batch normalisation over the images of all ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F


class RankBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over the ranks of ``group`` on any device, in float32 or wider.

    In evaluation it is plain batch normalisation. Keys of the state are those of ``nn.BatchNorm2d``.
    """

    group: dist.ProcessGroup

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, ...), in training by the statistics of all ranks, which update the running ones."""
        return self._over_ranks(input, self.group) if self.training else super().forward(input)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"needs (B, C, ...), got {tuple(input.shape)}")

    def _over_ranks(self, input: Tensor, group: dist.ProcessGroup) -> Tensor:
        mean, variance, count = _statistics(input.detach(), group)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            share = self._count_batch()
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean), share)
                self.running_var.lerp_((variance * (count / max(1.0, count - 1))).to(self.running_var), share)
        weight = torch.ones_like(mean) if self.weight is None else self.weight
        bias = torch.zeros_like(mean) if self.bias is None else self.bias
        wide = input if input.dtype == torch.float64 else input.float()
        normalised: Tensor = _Normalise.apply(  # type: ignore[no-untyped-call]
            wide, weight, bias, mean, variance, self.eps, count, group
        )
        return normalised.to(input.dtype)

    def _count_batch(self) -> float:
        """Count the batch; returns its weight in the running statistics."""
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        return 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, with the gradient through the statistics of all ranks.

    Both directions use torch's fused passes for given statistics. The gradient through the statistics is linear in x,
    with one slope and one offset per channel.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        eps: float,
        count: float,
        group: dist.ProcessGroup,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps, ctx.count, ctx.group = eps, count, group
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        own, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.stack((dbias, dweight))
        dist.all_reduce(sums, group=ctx.group)
        mean_grad, mean_product = (sums / ctx.count).unbind()
        inverse = (variance + ctx.eps).rsqrt()
        slope = -weight * inverse.square() * mean_product
        offset = -weight * inverse * mean_grad - slope * mean
        shape = (1, -1, *(1,) * (grad.ndim - 2))
        dx = own.addcmul_(x, slope.view(shape)).add_(offset.view(shape))
        return dx, dweight, dbias, None, None, None, None, None


def _statistics(x: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor, float]:
    """Mean and biased variance over all ranks, (C,), and the number of values per channel.

    Means and variances are gathered, not sums of squares, which cancel when the mean is large. Every rank combines
    them in the same order, so that all have bit-identical results.
    """
    other = [d for d in range(x.ndim) if d != 1]
    wide = x if x.dtype == torch.float64 else x.float()
    variance, mean = torch.var_mean(wide, other, correction=0)
    own = torch.stack((mean, variance))
    parts = own.new_empty((dist.get_world_size(group), *own.shape))
    dist.all_gather(list(parts.unbind(0)), own.contiguous(), group=group)
    means, variances = parts.unbind(1)
    mean = means.mean(dim=0)
    variance = variances.mean(dim=0) + (means - mean).square().mean(dim=0)
    return mean, variance, float(x.numel() // x.shape[1] * len(parts))


def synchronise_batchnorm(module: nn.Module, group: dist.ProcessGroup) -> Callable[[], None]:
    """Replace every batch normalisation inside ``module`` by one over the ranks of ``group``.

    On GPUs it is torch's ``SyncBatchNorm``, which has no CPU version; on the CPU :class:`RankBatchNorm`. All ranks must
    have equally many values.

    Returns:
        A function that restores the old modules, which share parameters and statistics with the new ones.
    """
    twins: dict[nn.Module, nn.Module] = {}
    places: list[tuple[nn.Module, str, nn.Module]] = []
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                twins.setdefault(child, _twin(child, group))
                parent.register_module(name, twins[child])
                places.append((parent, name, child))

    def undo() -> None:
        for parent, name, child in places:
            parent.register_module(name, child.train(parent.training))

    return undo


def _twin(norm: nn.modules.batchnorm._BatchNorm, group: dist.ProcessGroup) -> nn.Module:
    """A synchronised normalisation that shares parameters and buffers with ``norm``."""
    arguments = (norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    twin: nn.modules.batchnorm._BatchNorm
    if norm.weight is not None and norm.weight.device.type == "cuda":
        twin = nn.SyncBatchNorm(*arguments, process_group=group)
    else:
        twin = RankBatchNorm(*arguments)
        twin.group = group
    twin._parameters, twin._buffers = norm._parameters, norm._buffers
    return twin.train(norm.training)
