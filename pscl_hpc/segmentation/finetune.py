"""Fine-tuning of trunk and classifier on annotated images as a task of the training loop (docs/protocol.md)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pscl_hpc.archive import Archive, ImageRecord
from pscl_hpc.errors import UserError
from pscl_hpc.models import MODEL_FILE, ModelCard, SegmentationNet, build_trunk, load_trunk, save_segmentation
from pscl_hpc.runs import RunFolder
from pscl_hpc.seeding import derive_seed
from pscl_hpc.segmentation.config import FinetuneConfig
from pscl_hpc.segmentation.data import (
    FinetuneData,
    WindowDataset,
    Windows,
    select_data,
    select_unlabelled,
)
from pscl_hpc.segmentation.inference import Predictor
from pscl_hpc.segmentation.ingest_options import UNSEEN_KEY, options_record
from pscl_hpc.segmentation.losses import Objective, SegmentationLoss, Supervised, class_weights
from pscl_hpc.segmentation.metrics import ConfusionMatrix, Scores
from pscl_hpc.segmentation.semi_supervised import SEMI_SUPERVISED
from pscl_hpc.training import Ranks, StepLoss, Task, parameter_groups, scaled_lr, train
from pscl_hpc.training.reduce import sum_over_ranks
from pscl_hpc.working_size import note, working_scale


def finetune(config: FinetuneConfig, *, progress: bool = False) -> RunFolder:
    """Run or resume a fine-tuning, together with the other ranks that the environment describes.

    ``model.safetensors`` holds the weights of the best validation, or of the last step when ``validation_split`` is
    empty.

    Args:
        config: The run.
        progress: Show a progress bar when the output is a terminal.

    Raises:
        UserError, JobError, StopRequested: see :func:`pscl_hpc.training.train`.
    """
    return train(config, FinetuneTask, progress=progress)


class FinetuneTask(Task[Windows]):
    """A segmentation network on random windows of the annotated images, and of unlabelled ones when configured."""

    most_steps = 20_000

    def __init__(self, config: FinetuneConfig, archive: Archive, ranks: Ranks) -> None:
        super().__init__(config, archive, ranks)
        self.config = config
        self.data = select_data(config, archive)
        settings, home = config.semi_supervised, self.data.collection.name
        self.unlabelled: Sequence[ImageRecord] = (
            select_unlabelled(config, settings, archive, home) if settings else ()
        )
        self.resize = working_scale(config.resize, self.data.masks(archive, config.square))
        self.net = build_net(config, self.data.classes.count)
        self.dataset: WindowDataset = WindowDataset(
            archive,
            self.data.references,
            self.data.classes,
            config,
            trunk=self.net.trunk.config,
            unlabelled=self.unlabelled,
            resize=self.resize,
            rank=ranks.rank,
            ranks=ranks.world,
        )
        self.average = copy.deepcopy(self.net).requires_grad_(False) if config.average else None
        if self.average is not None:
            self.average.to(ranks.device).eval()
        self.module: Objective = build_objective(self.net, self.data, config, self.average).to(ranks.device)
        self.module.process_group = ranks.group
        self.predictor = Predictor(
            self.average or self.net,
            self.data.classes,
            ranks.device,
            runtime=config.runtime,
            resize=self.resize,
            unseen=self.data.unseen,
        )
        self.validate_every = config.validate_every if self.data.validation else 0

    def parameter_groups(self) -> list[dict[str, Any]]:
        return optimiser_groups(self.net, self.config, self.module.extra)

    def loss(self, module: nn.Module, batch: Windows, number: int, *, measure: bool) -> StepLoss:
        images = batch.images.to(self.ranks.device, non_blocking=True)
        targets = batch.targets.to(self.ranks.device, non_blocking=True)
        found: StepLoss = module(number, images, targets, batch.slots)
        return found

    def validate(self, step: int) -> tuple[float | None, dict[str, Any]]:
        scores = score_images(self.predictor, self.archive, self.data.validation, self.ranks, step)
        return scores.mean_dice, {
            "val/mean_dice": scores.mean_dice,
            **{f"val/dice/{name}": value for name, value in scores.dice.items()},
            "val/mean_iou": scores.mean_iou,
            "val/pixel_accuracy": scores.pixel_accuracy,
        }

    def image_ids(self, number: int) -> Sequence[str]:
        return self.dataset.image_ids(number)

    def state(self) -> dict[str, Any]:
        state = {"model": self.net.state_dict(), "extra": self.module.extra.state_dict()}
        return state if self.average is None else {**state, "average": self.average.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.net.load_state_dict(state["model"])
        self.module.extra.load_state_dict(state["extra"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Let the average of the weights follow; running statistics are averaged, too."""
        if self.average is None:
            return
        step = round(progress * self.config.schedule.steps)
        share = 1 - min(self.config.average, step / (step + 9))
        old, new = self.average.state_dict(), self.net.state_dict()
        for key, value in old.items():
            if value.is_floating_point():
                value.lerp_(new[key], share)
            else:
                value.copy_(new[key])

    def warnings(self) -> list[str]:
        return note(self.config.resize, self.resize) + self.data.warnings()

    def record(self) -> dict[str, Any]:
        """The ingest options and scales of the training images, and classes that they do not show."""
        found = options_record(self.data.references, self.unlabelled)
        return found | ({UNSEEN_KEY: list(self.data.unseen)} if self.data.unseen else {})

    def export(self, folder: RunFolder, best_step: int, best_score: float | None) -> None:
        """The model, and in run.json which weights it holds."""
        collection = self.data.collection
        card = ModelCard(
            self.net.trunk.config,
            collection.classes,
            collection.background,
            collection.ignore_classes,
            self.resize,
            class_weights(self.config.loss.class_weights, self.data.pixels),
        )
        save_segmentation(folder.path / MODEL_FILE, self.average or self.net, card)
        folder.update(best={"step": best_step, "mean_dice": best_score})


def build_net(config: FinetuneConfig, classes: int) -> SegmentationNet:
    """The network before the first step: pretrained or seeded trunk, seeded classifier.

    Raises:
        UserError: there are no pretrained weights, or their network does not fit the windows.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "weights"))
        trunk = load_trunk(config.pretrained) if config.pretrained else build_trunk(config.trunk)
        try:
            config.check_trunk(trunk.config)
        except ValueError as error:
            raise UserError(f"pretrained: {config.pretrained}: {error}") from None
        torch.manual_seed(derive_seed(config.seed, "classifier"))
        return SegmentationNet(trunk, classes)


def build_objective(
    net: SegmentationNet, data: FinetuneData, config: FinetuneConfig, average: SegmentationNet | None = None
) -> Objective:
    """The supervised loss, or the configured semi-supervised one."""
    loss = SegmentationLoss(
        data.classes,
        class_weights(config.loss.class_weights, data.pixels),
        ce_weight=config.loss.ce_weight,
        dice_weight=config.loss.dice_weight,
    )
    if config.semi_supervised is None:
        return Supervised(net, loss, config, average)
    made: Objective = SEMI_SUPERVISED.implementation(config.semi_supervised)(net, loss, config, average)
    return made


def optimiser_groups(net: SegmentationNet, config: FinetuneConfig, *extra: nn.Module) -> list[dict[str, Any]]:
    """Decoder, classifier and ``extra`` at ``optimiser.lr``; a pretrained encoder at its share of it."""
    rate, decay = scaled_lr(config.optimiser, config.batch_size), config.optimiser.weight_decay
    pretrained = bool(config.pretrained) or net.trunk.config.pretrained
    scale = config.encoder_lr_scale if pretrained else 1.0
    return [
        *parameter_groups(nn.ModuleList([net.trunk.decoder, net.classifier, *extra]), rate, decay),
        *parameter_groups(net.trunk.encoder, rate * scale, decay, name="encoder"),
    ]


def score_images(
    predictor: Predictor, archive: Archive, images: Sequence[ImageRecord], ranks: Ranks, step: int
) -> Scores:
    """Predict annotated images and score them together; each rank predicts its share of them."""
    matrix = ConfusionMatrix(predictor.classes)
    # All ranks send equally many heartbeats, even those that have no image left: a rank with fewer seems to hang.
    for first in range(0, len(images), ranks.world):
        ranks.beat(step, "validating")
        for record in images[first + ranks.rank : first + ranks.rank + 1]:
            matrix.update(predictor.archive_image(archive, record.index), archive.read_mask(record.index))
    counts = sum_over_ranks(torch.from_numpy(matrix.counts), ranks.group)
    matrix.counts, matrix.images = counts.numpy(), len(images)
    return matrix.scores()
