"""Pretraining as a task of the training loop. It names no method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import nn

from pscl_hpc.archive import Archive
from pscl_hpc.errors import UserError
from pscl_hpc.methods import Method, MethodOutput, Views, build_method
from pscl_hpc.models import TRUNK_FILE, Trunk, build_trunk, load_trunk, save_trunk
from pscl_hpc.pretraining.config import PretrainConfig
from pscl_hpc.pretraining.data import Batch, PretrainData, make_views
from pscl_hpc.pretraining.inspection import inspect_run
from pscl_hpc.pretraining.probe import FeatureProbe
from pscl_hpc.pretraining.two_pass import Part, batch_statistics, whole_batch_gradient
from pscl_hpc.runs import RunFolder
from pscl_hpc.seeding import Draws, derive_seed
from pscl_hpc.training import Ranks, StepLoss, Task, autocast, parameter_groups, scaled_lr, train
from pscl_kernels import available_backends

SCORED_SPLITS = ("val", "test")
"""Beginnings of the names of splits that choose checkpoints or score results."""


def pretrain(config: PretrainConfig, *, progress: bool = False) -> RunFolder:
    """Run or resume a pretraining, together with the other ranks that the environment describes.

    Args:
        config: The run.
        progress: Show a progress bar when the output is a terminal.

    Returns:
        The run folder, with ``trunk.safetensors`` and ``inspection.npz``.

    Raises:
        UserError, JobError, StopRequested: see :func:`pscl_hpc.training.train`.
    """
    return train(config, PretrainTask, progress=progress)


class PretrainTask(Task[Batch]):
    """A method on views of unlabelled images and annotated references."""

    def __init__(self, config: PretrainConfig, archive: Archive, ranks: Ranks) -> None:
        super().__init__(config, archive, ranks)
        self.config = config
        self.dataset: PretrainData = PretrainData(archive, config, ranks.rank, ranks.world)
        self.accumulate = config.passes * self.dataset.parts_here
        self.joint = config.accumulate == "exact"
        self.keep_lowest_loss = config.checkpoint.keep_best
        self.monitor_every = config.log.probe_every
        self._probe: FeatureProbe | None = None
        _check_kernels(config, ranks.device)
        torch.manual_seed(derive_seed(config.seed, "weights"))
        self.module: Method = build_method(config.method, first_trunk(config), self.dataset.setting).to(
            ranks.device
        )
        self.module.process_group = ranks.group
        if self.joint:
            _check_trunk(self.module.trunk)

    def parameter_groups(self) -> list[dict[str, Any]]:
        rate = scaled_lr(self.config.optimiser, self.config.batch_size)
        decay, scale = self.config.optimiser.weight_decay, self.config.encoder_lr_scale
        if scale == 1:
            return parameter_groups(self.module, rate, decay)
        encoder = self.module.trunk.encoder
        return [
            *parameter_groups(self.module, rate, decay, without=encoder),
            *parameter_groups(encoder, rate * scale, decay, name="encoder"),
        ]

    def loss(self, module: nn.Module, batch: Batch, number: int, *, measure: bool) -> StepLoss:
        with self._precision():
            output = module(self._views(batch, number), self._draws(batch, number), measure)
        return self._logged(output)

    def joint_backward(self, batches: Sequence[Batch], number: int, *, measure: bool) -> StepLoss:
        step = number // self.accumulate
        parts = [Part(partial(self._views, batch, step), self._draws(batch, step)) for batch in batches]
        return self._logged(whole_batch_gradient(self.module, parts, self._precision, measure))

    def _views(self, batch: Batch, number: int) -> Views:
        return make_views(batch, self.config, number, self.ranks.device)

    def _draws(self, batch: Batch, number: int) -> Draws:
        return Draws(self.config.seed, number, batch.slots.places, self.ranks.device)

    def _precision(self) -> AbstractContextManager[object]:
        return autocast(self.ranks.device, self.config.runtime)

    def _logged(self, output: MethodOutput) -> StepLoss:
        terms = {name: term for name, term in output.terms.items() if self.config.log.keeps(name)}
        return StepLoss(output.loss, terms)

    def after_step(self, progress: float) -> None:
        self.module.after_step(progress)

    def image_ids(self, number: int) -> Sequence[str]:
        return self.dataset.ids(number)

    def state(self) -> dict[str, Any]:
        return {"method": self.module.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.module.load_state_dict(state["method"])

    def export(self, folder: RunFolder, best_step: int, best_score: float | None) -> None:
        """The trunk, and pictures for the report from a whole batch."""
        self.module.process_group = None
        save_trunk(folder.path / TRUNK_FILE, self.module.trunk)
        data = PretrainData(self.archive, self.config)
        inspect_run(self.module, data, folder.path, self.ranks.device)

    def monitor(self) -> dict[str, float]:
        data = self.dataset
        if self._probe is None:
            self._probe = FeatureProbe(
                self.archive, self.config, data.references, data.records, self.ranks.device
            )
        with self._precision():
            return self._probe.measure(self.module.trunk)

    def warnings(self) -> list[str]:
        return config_warnings(self.config, [record.split for record in self.dataset.records])


def first_trunk(config: PretrainConfig) -> Trunk:
    """The trunk before the first step, from ``pretrained`` or new.

    Raises:
        UserError: its weights cannot be loaded, or are those of another trunk than ``model``.
    """
    if not config.pretrained:
        return build_trunk(config.model)
    trunk = load_trunk(config.pretrained)
    try:
        config.model.check_same(trunk.config)
    except ValueError as error:
        raise UserError(f"pretrained: {config.pretrained}: {error}") from None
    return trunk


def config_warnings(config: PretrainConfig, splits: Sequence[str]) -> list[str]:
    """Warnings on settings that are possible but rarely intended.

    Args:
        config: The run.
        splits: The split of each unlabelled image.
    """
    found = []
    scored = sorted({split for split in splits if split.startswith(SCORED_SPLITS)})
    if scored:
        found.append(
            f"data.splits includes images of {', '.join(scored)}, so scores on them are not scores on unseen images; "
            "leave these splits out, or say so with the scores"
        )
    images, needed = len(splits), config.images_per_pass
    if images < needed:
        found.append(
            f"{images} unlabelled image{' is' if images == 1 else 's are'} too few for a batch_size of {needed}: an image "
            f"occurs several times in a batch and is its own negative; set batch_size={images} or less, or add images"
        )
    height, width = config.views.size
    stride = config.method.paired_stride(config.model.maps)
    if stride and (height != width or height % stride):
        side = max(1, round(height / stride)) * stride
        found.append(
            f"views.size is [{height}, {width}]: unless views are square with a side that is a multiple of {stride}, "
            "corresponding patches of the two views can be more than a patch apart; set "
            f"views.size=[{side}, {side}]"
        )
    schedule = config.schedule
    if schedule.steps and schedule.warmup_steps >= schedule.steps:
        found.append(
            f"schedule.warmup_steps ({schedule.warmup_steps}) is not less than schedule.steps ({schedule.steps}), so "
            "the learning rate never reaches optimiser.lr; reduce it"
        )
    return [f"warning: {sentence}" for sentence in found]


def _check_trunk(trunk: Trunk) -> None:
    """UserError when the trunk mixes the images of a part, so that a part is not a part of the whole batch."""
    if layers := batch_statistics(trunk):
        raise UserError(
            f"accumulate=exact needs a trunk whose features of an image do not depend on the other images, but this one "
            f"(model.name={trunk.config.name}) has {len(layers)} layers with batch statistics, such as {layers[0]}; set "
            "model.name=unet model.norm=group (or instance), or accumulate=1"
        )


def _check_kernels(config: PretrainConfig, device: torch.device) -> None:
    """UserError when the chosen backend is not available."""
    backend, choices = config.runtime.kernels, available_backends(torch.empty((0, 1), device=device))
    if backend not in ("auto", *choices):
        raise UserError(
            f"runtime.kernels is '{backend}', which does not run on {device.type} here; choose auto, "
            f"{' or '.join(choices)}"
        )
