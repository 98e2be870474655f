"""Measuring the rates of one device on synthetic micrographs. No archive is needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pscl_hpc.archive import Collection
from pscl_hpc.archive.synthesis import synthesise
from pscl_hpc.archive.synthesis.generate import MIN_SIZE
from pscl_hpc.errors import JobError, UserError
from pscl_hpc.methods import Method, Setting, build_method
from pscl_hpc.models import build_trunk, checkpoint_blocks
from pscl_hpc.planning.rates import Contrast, Rates, measured_keys
from pscl_hpc.pretraining.config import PretrainConfig
from pscl_hpc.pretraining.data import Batch, make_views
from pscl_hpc.runs import commit, describe_device, now, versions
from pscl_hpc.seeding import Draws, Slots
from pscl_hpc.training import (
    autocast,
    build_optimiser,
    parameter_groups,
    setup_device,
)
from pscl_kernels import patch_nt_xent

_REPEATS = 3
_CLASSES = 3
_LEAST_USE, _MOST_SPREAD = 0.8, 2.0
"""A machine is taken for busy if its processors worked for less than this share of the time, or if repeats differ so."""
_LOSS_ROWS = {"cpu": (2048, 4096), "cuda": (16384, 65536)}
"""Numbers of rows for which the loss alone is timed."""


class _Pass(NamedTuple):
    """Measurements for one number of images."""

    images: int
    seconds: list[float]
    cpu_seconds: list[float]
    """Processor time of this process, all of its threads together, in each of the steps."""
    peak_bytes: int
    contrasts: list[tuple[int, int, torch.dtype]]
    """Pairs, width and dtype of each call of the gathered loss."""


class _Contrasts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the shapes of the calls of the gathered loss."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[tuple[int, int, torch.dtype]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.pscl_kernels.patch_nt_xent.default:
            self.found.append((*args[0].shape, args[0].dtype))
        return func(*args, **(kwargs or {}))


def measure_rates(config: PretrainConfig, batches: Sequence[int]) -> Rates:
    """Time steps of a configuration on this device, with one forward pass each.

    Args:
        config: Run configuration; its archive and references are not opened.
        batches: At least two numbers of unlabelled images, ascending.

    Raises:
        UserError: the views are smaller than the smallest synthetic micrograph.
        JobError: the times do not grow with the number of images, because other work disturbed them.
    """
    if len(batches) < 2 or list(batches) != sorted(set(batches)):
        raise ValueError(f"two or more ascending numbers of images are needed, got {list(batches)}")
    if min(config.views.size) < MIN_SIZE:
        raise UserError(
            f"views.size is {list(config.views.size)}, but rates are measured on synthetic micrographs of at least "
            f"{MIN_SIZE} x {MIN_SIZE} pixels; set views.size=[{MIN_SIZE},{MIN_SIZE}] or larger"
        )
    device = setup_device(config.runtime)
    torch.manual_seed(0)
    names = tuple(f"class {i}" for i in range(_CLASSES))
    setting = Setting(
        Collection("synthetic", names), ("a", "b"), config.images_per_step, config.runtime.kernels
    )
    method = build_method(config.method, build_trunk(config.model), setting).to(device).train()
    if config.runtime.activation_checkpointing:
        checkpoint_blocks(method)
    passes = [_measure(method, config, images, device) for images in batches]
    forwards = [_forward(method, config, images, device) for images in batches]
    kinds = {(width, dtype) for _, width, dtype in passes[0].contrasts}
    per_square = {kind: _seconds_per_square(*kind, device, config.runtime.kernels) for kind in kinds}
    contrasts = [_contrast(each, passes, per_square) for each in range(len(passes[0].contrasts))]
    images = np.array(batches, dtype=float)
    rest = [
        min(p.seconds) - sum(c.seconds_per_square * c.rows(p.images) ** 2 for c in contrasts) for p in passes
    ]
    step_fixed, step_per_image = _line(images, rest)
    if step_per_image <= 0:
        raise JobError(
            f"the time of a step did not grow with the number of images ({', '.join(map(str, batches))}); measure on "
            "an idle device, or with numbers of images further apart (--images)"
        )
    forward_fixed, forward_per_image = _line(images, forwards)
    memory_fixed, memory_per_image = _line(images, [float(p.peak_bytes) for p in passes])
    trained = [p for p in method.parameters() if p.requires_grad]
    return Rates(
        device=describe_device(device),
        keys=measured_keys(config),
        references=_references(config),
        step_fixed=step_fixed,
        step_per_image=step_per_image,
        forward_fixed=forward_fixed,
        forward_per_image=max(0.0, forward_per_image),
        memory_fixed=memory_fixed,
        memory_per_image=memory_per_image,
        contrasts=tuple(contrasts),
        symmetric=device.type == "cpu",
        gradient_bytes=sum(p.numel() * p.element_size() for p in trained),
        normalisations=sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in method.trunk.modules()),
        passes=2,
        measured={
            "images": list(batches),
            "seconds": [p.seconds for p in passes],
            "cpu_seconds": [p.cpu_seconds for p in passes],
            "forward_seconds": forwards,
            "disturbed": disturbance(passes),
            "peak_bytes": [p.peak_bytes for p in passes],
            "date": now(),
            "commit": commit(),
            "versions": versions(),
            "threads": torch.get_num_threads(),
        },
    )


def _measure(method: Method, config: PretrainConfig, images: int, device: torch.device) -> _Pass:
    batch = _batch(config, images)
    optimiser = build_optimiser(parameter_groups(method, 1e-9), config.optimiser)
    count = len(batch.ids)

    def step() -> None:
        views = make_views(batch, config, 0, device)
        optimiser.zero_grad(set_to_none=True)
        with autocast(device, config.runtime):
            loss = method(views, Draws(0, 0, tuple(range(count)), device)).loss
        loss.backward()
        optimiser.step()

    with _Contrasts() as mode:
        step()  # also the warm-up
    seconds, cpu_seconds = [], []
    for _ in range(_REPEATS):
        before = time.process_time()
        seconds.append(_timed(step, device))
        cpu_seconds.append(time.process_time() - before)
    return _Pass(images, seconds, cpu_seconds, _peak(step, device), mode.found)


def _forward(method: Method, config: PretrainConfig, images: int, device: torch.device) -> float:
    """Seconds of the views and the embedding without gradient."""
    batch = _batch(config, images)
    draws = Draws(0, 0, tuple(range(len(batch.ids))), device)

    def embed() -> None:
        with torch.no_grad(), autocast(device, config.runtime):
            method.embed(make_views(batch, config, 0, device), draws, False)

    embed()
    return min(_timed(embed, device) for _ in range(_REPEATS))


def disturbance(passes: Sequence[_Pass]) -> str:
    """Why the times may be those of a busy machine rather than of the device, in a few words; empty if they are not.

    On an idle machine a step that computes uses at least one processor all the time, also while it waits for a GPU.
    """
    wall = sum(min(each.seconds) for each in passes)
    used = sum(each.cpu_seconds[each.seconds.index(min(each.seconds))] for each in passes)
    if used < _LEAST_USE * wall:
        return f"the fastest steps took {wall:.3g} s, but only {used:.3g} s of processor time"
    spread = max(max(each.seconds) / min(each.seconds) for each in passes if min(each.seconds) > 0)
    return f"repeated steps differed by a factor of {spread:.2g}" if spread > _MOST_SPREAD else ""


def _references(config: PretrainConfig) -> int:
    """References that one device has in memory together, if it has all of them, or all of a part."""
    return config.references_per_pass // config.parts


def _batch(config: PretrainConfig, images: int) -> Batch:
    """Synthetic micrographs as a batch, references first."""
    references = _references(config)
    count = references + images
    pictures = [
        synthesise("precipitates", seed=1, index=i, size=config.views.size) for i in range(min(8, count))
    ]
    chosen = [pictures[i % len(pictures)] for i in range(count)]
    grey = torch.stack([torch.from_numpy(p.image).float() / 255 for p in chosen])[:, None]
    return Batch(
        ids=tuple(map(str, range(count))),
        slots=Slots.all(count),
        references=references,
        images=grey.repeat(1, config.model.in_channels, 1, 1),
        labels=torch.stack([torch.from_numpy(p.mask) for p in chosen]).clamp_max(_CLASSES - 1),
        comparable=torch.ones(count, dtype=torch.bool),
        production_batches=torch.zeros(count, dtype=torch.int64),
    )


def _contrast(index: int, passes: list[_Pass], per_square: dict[tuple[int, torch.dtype], float]) -> Contrast:
    """One call of the loss, with a linear fit of its rows over the number of images."""
    pairs = [float(each.contrasts[index][0]) for each in passes]
    _, width, dtype = passes[0].contrasts[index]
    fixed, per_image = _line(np.array([each.images for each in passes], dtype=float), pairs)
    size = torch.empty((), dtype=dtype).element_size()
    return Contrast(fixed, per_image, width, size, per_square[width, dtype])


def _seconds_per_square(width: int, dtype: torch.dtype, device: torch.device, backend: str) -> float:
    """Time of the loss over M rows of equally frequent classes, forward and backward, divided by M squared; M large."""
    rates = []
    for rows in _LOSS_ROWS[device.type]:
        q, k = (torch.randn(rows // 2, width, device=device, dtype=dtype).requires_grad_() for _ in range(2))
        groups = torch.arange(rows // 2, device=device) % _CLASSES

        def call(q: Tensor = q, k: Tensor = k, groups: Tensor = groups) -> None:
            patch_nt_xent(q, k, groups, backend=backend).backward()  # type: ignore[no-untyped-call]

        call()
        rates.append(min(_timed(call, device) for _ in range(_REPEATS)) / rows**2)
    return min(rates)


def _line(x: np.ndarray[Any, Any], y: Sequence[float]) -> tuple[float, float]:
    """Least-squares intercept, at least 0, and slope."""
    slope, intercept = np.polyfit(x, np.array(y), 1)
    if intercept < 0:
        return 0.0, float((x @ np.array(y)) / (x @ x))
    return float(intercept), float(slope)


def _timed(call: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _peak(call: Callable[[], None], device: torch.device) -> int:
    """Peak memory in bytes during ``call``, with what was allocated before: of torch on a GPU, else of the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return int(torch.cuda.max_memory_allocated(device))
    # Resets the peak (Linux, proc(5)).
    Path("/proc/self/clear_refs").write_text("5")
    call()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
