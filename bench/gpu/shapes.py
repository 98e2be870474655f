"""Shapes of the measurements, the most important ones first, and their inputs."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.gpu.run import Setting

TEMPERATURE = 0.1

NEIGHBOURS = 16
"""Consecutive pairs of one group in the inputs, as patches of one class are in a batch."""


class LossShape(NamedTuple):
    """Plain or grouped NT-Xent; 0 groups: each pair is its own group."""

    rows: int
    width: int
    groups: int
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


def key_of(shape: Any) -> dict[str, Any]:
    """The shape as the beginning of an entry of a result file."""
    return {**shape._asdict(), "dtype": str(shape.dtype).removeprefix("torch.")}


def loss_shapes(setting: Setting) -> list[LossShape]:
    if setting.dry:
        return [LossShape(64, 16, groups, setting.dtype) for groups in (0, 4)]
    widths = (64, 128, 256)
    sizes = [(65_536, w, setting.dtype) for w in widths] + [(1_048_576, 64, setting.dtype)]
    sizes += [(rows, w, setting.dtype) for rows in (16_384, 262_144) for w in widths]
    sizes += [(65_536, w, torch.float16) for w in widths]
    return [LossShape(rows, w, groups, dtype) for rows, w, dtype in sizes for groups in (0, 4)]


def queue_shapes(setting: Setting) -> list[QueueShape]:
    if setting.dry:
        return [QueueShape(24, 40, 16, setting.dtype)]
    sizes = [(rows, w) for rows in (65_536, 16_384, 4_096) for w in (64, 128, 256)]
    return [QueueShape(rows, 65_536, w, setting.dtype) for rows, w in sizes]


def sampling_shapes(setting: Setting) -> list[SamplingShape]:
    if setting.dry:
        return [SamplingShape(2, 5, 200, 16, setting.dtype)]
    sizes = ((256, 35_344), (256, 8_836), (256, 141_376), (8, 35_344))
    return [
        SamplingShape(batch, count, patches, 64, setting.dtype)
        for batch, patches in sizes
        for count in (64, 240, 480)
    ]


def pairs(setting: Setting, rows: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two related views (rows / 2, width), each with a gradient."""
    generator = torch.Generator(setting.device).manual_seed(rows + width)
    made = [torch.randn(rows // 2, width, device=setting.device, generator=generator) for _ in range(2)]
    q, k = made[0], 0.5 * made[0] + made[1]
    return q.to(dtype).requires_grad_(), k.to(dtype).requires_grad_()


def grouping(setting: Setting, rows: int, groups: int) -> Tensor | None:
    """(rows / 2,) group of each pair; None if each pair is its own group."""
    return torch.arange(rows // 2, device=setting.device) // NEIGHBOURS % groups if groups else None


def queued(setting: Setting, shape: QueueShape) -> tuple[Tensor, Tensor, Tensor]:
    """Queries with a gradient, their keys without one, and unit queue entries."""
    q, k = pairs(setting, 2 * shape.rows, shape.width, shape.dtype)
    generator = torch.Generator(setting.device).manual_seed(1)
    entries = torch.randn(shape.entries, shape.width, device=setting.device, generator=generator)
    return q, k.detach(), torch.nn.functional.normalize(entries, dim=1).to(shape.dtype)


def patches_of(setting: Setting, shape: SamplingShape) -> tuple[Tensor, Tensor]:
    """Templates (T, D) and patches (B, P, D)."""
    generator = torch.Generator(setting.device).manual_seed(2)
    options: dict[str, Any] = {"device": setting.device, "dtype": shape.dtype, "generator": generator}
    patches = torch.randn(shape.batch, shape.patches, shape.width, **options)
    return torch.randn(shape.templates, shape.width, **options), patches
