"""Shapes at which ours and the peers are measured, the ones with marks first, and their inputs."""

from typing import NamedTuple

import torch
from torch import Tensor

from bench.gpu.setting import Setting
from pscl_kernels import available_backends

TEMPERATURE = 0.1

LAID_OUT = 16
"""Neighbouring pairs of one group in the inputs, as the patches of one class lie in a batch."""


class LossShape(NamedTuple):
    rows: int
    width: int
    groups: int
    """Number of equal groups; 0: each pair its own."""
    dtype: torch.dtype


class QueueShape(NamedTuple):
    rows: int
    entries: int
    width: int
    dtype: torch.dtype


class SamplingShape(NamedTuple):
    batch: int
    templates: int
    patches: int
    width: int
    dtype: torch.dtype


def loss_shapes(setting: Setting) -> list[LossShape]:
    if setting.tiny:
        return [LossShape(64, 16, groups, setting.dtypes[0]) for groups in (0, 4)]
    first, second = setting.dtypes
    sizes = [(65_536, w) for w in (64, 128, 256)] + [(1_048_576, 64)]
    sizes += [(rows, w) for rows in (16_384, 262_144) for w in (64, 128, 256)]
    sizes += [(1_048_576, 128), (1_048_576, 256)]
    shapes = [LossShape(*size, groups, first) for size in sizes for groups in (0, 4)]
    return shapes + [LossShape(*size, groups, second) for size in sizes[:7] for groups in (0, 4)]


def queue_shapes(setting: Setting) -> list[QueueShape]:
    if setting.tiny:
        return [QueueShape(24, 40, 16, setting.dtypes[0])]
    sizes = [(65_536, 65_536), (16_384, 65_536), (4_096, 65_536)]
    return [
        QueueShape(*size, width, dtype)
        for dtype in setting.dtypes
        for size in sizes
        for width in (64, 128, 256)
    ]


def sampling_shapes(setting: Setting) -> list[SamplingShape]:
    if setting.tiny:
        return [SamplingShape(2, 5, 200, 16, setting.dtypes[0])]
    return [
        SamplingShape(batch, templates, patches, 64, dtype)
        for dtype in setting.dtypes
        for batch, patches in ((256, 35_344), (256, 8_836), (256, 141_376), (8, 35_344))
        for templates in (64, 240, 480)
    ]


def takes(setting: Setting, backend: str, width: int, dtype: torch.dtype) -> bool:
    """Whether a backend takes such rows on this device: "triton" does not where shared memory is too small."""
    return backend in available_backends(torch.empty(0, width, dtype=dtype, device=setting.device))


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def pairs(setting: Setting, rows: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two related views of rows / 2 pairs, each with a gradient."""
    generator = torch.Generator(setting.device).manual_seed(rows + width)
    made = [torch.randn(rows // 2, width, device=setting.device, generator=generator) for _ in range(2)]
    q, k = made[0], 0.5 * made[0] + made[1]
    return q.to(dtype).requires_grad_(), k.to(dtype).requires_grad_()


def grouping(setting: Setting, rows: int, groups: int) -> Tensor | None:
    """(rows / 2,) group of each pair; None where each pair is its own."""
    if not groups:
        return None
    return torch.arange(rows // 2, device=setting.device) // LAID_OUT % groups


def queued(setting: Setting, shape: QueueShape) -> tuple[Tensor, Tensor, Tensor]:
    """Queries with a gradient, their keys without one, and unit queue entries."""
    q, k = pairs(setting, 2 * shape.rows, shape.width, shape.dtype)
    generator = torch.Generator(setting.device).manual_seed(1)
    entries = torch.randn(shape.entries, shape.width, device=setting.device, generator=generator)
    return q, k.detach(), torch.nn.functional.normalize(entries, dim=1).to(shape.dtype)


def patches_of(setting: Setting, shape: SamplingShape) -> tuple[Tensor, Tensor]:
    """Templates (T, D) and patches (B, P, D)."""
    generator = torch.Generator(setting.device).manual_seed(2)
    patches = torch.randn(
        shape.batch, shape.patches, shape.width, device=setting.device, dtype=shape.dtype, generator=generator
    )
    templates = torch.randn(
        shape.templates, shape.width, device=setting.device, dtype=shape.dtype, generator=generator
    )
    return templates, patches
