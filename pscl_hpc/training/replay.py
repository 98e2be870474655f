"""A step whose loss or gradient was not finite: saved by the run, computed again by ``pscl-hpc replay``."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pscl_hpc.archive import Archive
from pscl_hpc.config import TrainingConfig
from pscl_hpc.errors import JobError, UserError
from pscl_hpc.runs import CheckpointStore, RunFolder
from pscl_hpc.training.device import setup_device
from pscl_hpc.training.random_state import set_random_state
from pscl_hpc.training.ranks import Ranks
from pscl_hpc.training.task import StepLoss, Task

FAILURE = "failure"
"""Folder of the failed step in the run folder, with the files of a checkpoint."""
_NAMED = 5
"""Parameters that are named at most."""

ConfigT = TypeVar("ConfigT", bound=TrainingConfig)


def save_failure(
    folder: RunFolder,
    step: int,
    state: Mapping[str, Any],
    random: Mapping[str, Tensor],
    batches: Sequence[Any],
) -> bool:
    """Save the step that failed; False if it cannot be written, for the error that follows matters more.

    Args:
        folder: The run.
        step: Steps done before.
        state: Of the task, before the step but for running statistics.
        random: :func:`~pscl_hpc.training.random_state.random_state` at its beginning.
        batches: Those of this rank.
    """
    found = {
        "task": dict(state),
        "random": dict(random),
        "batches": [list(_tensors(batch)) for batch in batches],
    }
    try:
        CheckpointStore(folder.path / FAILURE, keep=1, guard=folder.check_owner).save(step, found)
    except JobError:
        return False
    return True


@dataclass
class Replay:
    """What a step that failed computes now, in the order of its computation."""

    step: int
    """Number of the step, from 1."""
    images: tuple[str, ...]
    device: str
    precision: str
    same_images: bool | None
    """Whether the images read now are those of the failed step; None if they cannot be compared, after several ranks."""
    weights: list[str] = field(default_factory=list)
    """Parameters and buffers that were not finite before the step."""
    inputs: list[str] = field(default_factory=list)
    """Images with values that are not finite."""
    layer: str = ""
    """The first layer whose output is not finite, in words."""
    terms: dict[str, float] = field(default_factory=dict)
    """Loss and its terms; of several passes the first that is not finite, else the last."""
    gradient: str = ""
    """The first output of a layer, from the loss backwards, whose gradient is not finite, in words."""
    parameters: list[str] = field(default_factory=list)
    """Parameters whose gradient is not finite."""

    def lines(self) -> list[str]:
        """The whole in words, the verdict last."""
        words = {
            True: "the same as then",
            False: "others than then",
            None: "not compared: the run had several ranks",
        }
        return [
            f"step {self.step} on {self.device} with precision {self.precision}",
            f"images: {_list(self.images)} ({words[self.same_images]})",
            "loss: " + ", ".join(f"{name}={value:g}" for name, value in self.terms.items()),
            f"gradient: {_list(self.parameters) + ' not finite' if self.parameters else 'finite'}",
            self.verdict,
        ]

    @property
    def verdict(self) -> str:
        """One sentence: where the first value that is not finite arises."""
        bad = [name for name, value in self.terms.items() if not math.isfinite(value)]
        if self.weights:
            return f"the weights were not finite before the step: {_list(self.weights)}"
        if self.inputs:
            return f"the images are not finite: {_list(self.inputs)}"
        if self.layer:
            return f"the first value that is not finite is in the output of {self.layer}"
        if bad:
            return f"all layers are finite, but not the loss: {_list(bad)}"
        if self.gradient:
            return f"the loss is finite, but not its gradient, first at the output of {self.gradient}"
        if self.parameters:
            return f"the loss is finite, but not the gradient of {_list(self.parameters)}"
        return (
            "all values are finite now, so the failure depends on the device or the precision, or the images were read "
            "wrongly then"
        )


def replay(
    folder: RunFolder, build: Callable[[ConfigT, Archive, Ranks], Task[Any]], device: str | None = None
) -> Replay:
    """Compute the failed step of a run again, in this process alone and without changing the run.

    Args:
        folder: The run.
        build: Makes its task.
        device: auto, cpu or cuda; by default that of the run's configuration.

    Raises:
        UserError: the run has no failed step, or its archive has changed.
    """
    store = CheckpointStore(folder.path / FAILURE, keep=1)
    saved = store.load_latest()
    if saved is None:
        raise UserError(
            f"{folder.path}: has no failed step; a run saves one when its loss or gradient is not finite"
        )
    config: Any = folder.decided_config
    runtime = config.runtime.model_copy(update={"device": device} if device else {})
    config = config.model_copy(update={"runtime": runtime})
    ranks = Ranks.alone(setup_device(runtime))
    with Archive(config.data.archive) as archive:
        if archive.fingerprint != folder.record.get("archive", archive.fingerprint):
            raise UserError(
                f"{archive.path}: has changed since the run {folder.path} began; restore it to replay its step"
            )
        task = build(config, archive, ranks)
        step, count = int(saved["step"]), task.accumulate
        numbers = range(step * count, (step + 1) * count)
        batches = [task.dataset[number] for number in numbers]
        same = _same(saved["batches"], batches) if folder.attempts[-1].get("ranks", 1) == 1 else None
        images = tuple(dict.fromkeys(name for number in numbers for name in task.image_ids(number)))
        found = Replay(step + 1, images, ranks.device.type, runtime.precision, same)
        found.inputs = [
            name
            for batch in batches
            for name, image in zip(batch.ids, batch.images, strict=True)
            if not bool(image.isfinite().all())
        ]
        task.load_state(saved["task"])
        found.weights = [name for name, tensor in task.module.named_parameters() if not _finite(tensor)]
        _compute(task, batches, numbers, saved["random"], found)
    return found


def _compute(
    task: Task[Any], batches: list[Any], numbers: range, random: Mapping[str, Tensor], found: Replay
) -> None:
    task.module.train()
    task.module.zero_grad(set_to_none=True)
    set_random_state(random, task.ranks.device)
    losses: list[StepLoss] = []
    with _watching(task.module, found):
        if task.joint:
            losses.append(task.joint_backward(batches, numbers[0], measure=True))
        else:
            for number, batch in zip(numbers, batches, strict=True):
                loss = task.loss(task.module, batch, number, measure=True)
                losses.append(loss)
                (loss.total / len(batches)).backward()  # type: ignore[no-untyped-call]
    for loss in losses:
        terms = {"loss": loss.total, **loss.terms}
        found.terms = {name: float(value.detach()) for name, value in terms.items()}
        if not math.isfinite(found.terms["loss"]):
            break
    found.parameters = [
        name for name, p in task.module.named_parameters() if p.grad is not None and not _finite(p.grad)
    ]


@contextlib.contextmanager
def _watching(module: nn.Module, found: Replay) -> Iterator[None]:
    """Note the first output of a layer, and the first gradient of one, that is not finite."""
    # Not the module itself, whose output is the loss.
    names = {layer: name for name, layer in module.named_modules() if name}

    def forward(layer: nn.Module, _: object, output: object) -> None:
        where = f"{names[layer]} ({type(layer).__name__})"
        for tensor in _tensors(output):
            if not found.layer and not _finite(tensor):
                found.layer = _in_words(where, tensor)
            if tensor.requires_grad:
                tensor.register_hook(partial(backward, where))  # type: ignore[no-untyped-call]

    def backward(where: str, gradient: Tensor) -> None:
        if not found.gradient and not _finite(gradient):
            found.gradient = _in_words(where, gradient)

    hooks = [layer.register_forward_hook(forward) for layer in names]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _tensors(value: object) -> Iterator[Tensor]:
    """The tensors in dictionaries, sequences and data classes."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif is_dataclass(value) and not isinstance(value, type):
        for each in fields(value):
            yield from _tensors(getattr(value, each.name))


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _in_words(where: str, tensor: Tensor) -> str:
    bad = int((~tensor.isfinite()).sum())
    return f"{where}: {bad} of {tensor.numel()} values"


def _same(saved: list[list[Tensor]], batches: list[Any]) -> bool:
    now = [list(_tensors(batch)) for batch in batches]
    return [len(each) for each in saved] == [len(each) for each in now] and all(
        torch.equal(a, b)
        for one, other in zip(saved, now, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
