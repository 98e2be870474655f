"""Fine-tuning of trunk and classifier on the annotated images (docs/protocol.md)."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from pscl_hpc.archive import Archive, ImageRecord
from pscl_hpc.errors import JobError, UserError
from pscl_hpc.models import MODEL_FILE, ModelCard, SegmentationNet, build_trunk, load_trunk, save_segmentation
from pscl_hpc.progress import Progress
from pscl_hpc.runs import BackgroundWriter, MetricsLog, RunFolder
from pscl_hpc.seeding import derive_seed
from pscl_hpc.segmentation.config import FinetuneConfig, SemiSupervisedConfig
from pscl_hpc.segmentation.cross_consistency import CrossConsistency
from pscl_hpc.segmentation.data import FinetuneData, WindowDataset, Windows, select_data
from pscl_hpc.segmentation.inference import Predictor
from pscl_hpc.segmentation.ingest_options import record_ingest_options
from pscl_hpc.segmentation.losses import SegmentationLoss, class_weights
from pscl_hpc.segmentation.metrics import ConfusionMatrix, Scores
from pscl_hpc.segmentation.objective import Objective, StepLoss, Supervised
from pscl_hpc.segmentation.unlabelled import MixedWindows, select_unlabelled
from pscl_hpc.training import (
    StopRequested,
    build_optimiser,
    gradient_norm,
    how_to_go_on,
    parameter_groups,
    read_place,
    reader_options,
    scaled_lr,
    set_lr,
    setup_device,
    stop_reason,
)


def finetune(config: FinetuneConfig, *, progress: bool = False) -> RunFolder:
    """Run, or continue, a fine-tuning.

    Nothing is written before the input is known to be right. A finished run with the same configuration is given back
    as it is. ``model.safetensors`` holds the weights of the best validation, or of the last step where
    ``validation_split`` is empty.

    Args:
        config: The run.
        progress: Show a progress bar when the output is a terminal.

    Raises:
        UserError: configuration, archive, references, or pretrained weights do not fit.
        JobError: loss or gradient is not finite, names the step and the images; a checkpoint cannot be written, or
            another attempt has taken over the run.
        StopRequested: when it stopped on request; the state is saved.
    """
    if read_place().world > 1:
        raise UserError(
            "finetune trains on one image and runs in one process, but WORLD_SIZE is more than 1; start it without "
            "torchrun"
        )
    device = setup_device(config.runtime)
    with Archive(config.data.archive) as archive:
        data = select_data(config, archive)
        settings = config.semi_supervised
        unlabelled = select_unlabelled(config, settings, archive, data.collection.name) if settings else ()
        net = build_net(config, data.classes.count)
        folder = RunFolder.start(config, device)
        if folder.done:
            return folder
        with folder:
            _check_archive(folder, archive)
            record_ingest_options(folder, data.references, unlabelled)
            _Training(config, archive, data, unlabelled, net, device, folder).run(progress=progress)
    return folder


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
    net: SegmentationNet, data: FinetuneData, config: FinetuneConfig, settings: SemiSupervisedConfig | None
) -> Objective:
    """What the steps descend: the supervised loss, or the semi-supervised one of ``settings``."""
    loss = SegmentationLoss(
        data.classes,
        class_weights(config.loss.class_weights, data.pixels),
        ce_weight=config.loss.ce_weight,
        dice_weight=config.loss.dice_weight,
    )
    return CrossConsistency(net, loss, config, settings) if settings else Supervised(net, loss, config)


def optimiser_groups(net: SegmentationNet, config: FinetuneConfig, *extra: nn.Module) -> list[dict[str, Any]]:
    """Decoder, classifier and ``extra`` at ``optimiser.lr``; a pretrained encoder at its share of it."""
    rate, decay = scaled_lr(config.optimiser, config.batch_size), config.optimiser.weight_decay
    scale = config.encoder_lr_scale if config.pretrained else 1.0
    return [
        *parameter_groups(nn.ModuleList([net.trunk.decoder, net.classifier, *extra]), rate, decay),
        *parameter_groups(net.trunk.encoder, rate * scale, decay),
    ]


@dataclass
class Best:
    """The best validation so far."""

    step: int = 0
    mean_dice: float = -math.inf


class _Training:
    """The loop. All of its state is model, optimiser, step and best score; every random draw is keyed by the step."""

    def __init__(
        self,
        config: FinetuneConfig,
        archive: Archive,
        data: FinetuneData,
        unlabelled: tuple[ImageRecord, ...],
        net: SegmentationNet,
        device: torch.device,
        folder: RunFolder,
    ) -> None:
        self.config = config
        self.archive = archive
        self.data = data
        self.unlabelled = unlabelled
        self.net = net
        self.device = device
        self.folder = folder
        self.objective = build_objective(net, data, config, config.semi_supervised).to(device)
        self.optimiser = build_optimiser(
            optimiser_groups(net, config, self.objective.extra), config.optimiser
        )
        self.predictor = Predictor(net, data.classes, device, runtime=config.runtime)
        self.best = Best()
        self._writer = BackgroundWriter(folder.checkpoints)

    def run(self, *, progress: bool) -> None:
        """Train to the last step and write the model.

        Raises:
            StopRequested: at a step boundary, with the state saved.
        """
        try:
            self._train(progress=progress)
            self._writer.flush()
        finally:
            self._writer.close()
        self._finish()

    def _train(self, *, progress: bool) -> None:
        config, steps = self.config, self.config.schedule.steps
        start = self._resume()
        log = self.folder.metrics_log()
        log.rewind(start)
        self.folder.goes_on_from(start)
        loader: DataLoader[Windows] = DataLoader(
            self._windows(),
            batch_size=None,
            sampler=range(start, steps),
            pin_memory=self.device.type == "cuda",
            **reader_options(config.runtime.workers),
        )
        self.objective.train()
        seen, since = 0, time.perf_counter()
        with Progress("finetune", steps, start, unit="step", show=progress) as bar:
            for step, batch in enumerate(loader, start + 1):
                loss = self._step(step - 1, batch)
                seen += len(batch.images)
                if step % config.log.every_steps == 0 or step == steps:
                    rate = seen / max(1e-9, time.perf_counter() - since)
                    self._log_training(log, step, loss, rate)
                    seen, since = 0, time.perf_counter()
                pause = time.perf_counter()
                if self.data.validation and (step % config.validate_every == 0 or step == steps):
                    self._validate(log, step)
                if step % config.checkpoint.every_steps == 0 or step == steps:
                    self._writer.save(step, self._state())
                since += time.perf_counter() - pause
                bar.advance(f"loss {loss.total.item():.3f}")
                if step < steps:
                    self._stop_if_asked(step)
        log.close()

    def _stop_if_asked(self, step: int) -> None:
        reason = stop_reason()
        if reason is None:
            return
        if self._writer.saved != step:
            self._writer.save(step, self._state())
        self._writer.flush()
        self.folder.stop(reason)
        raise StopRequested(reason, how_to_go_on(self.folder.path, step))

    def _windows(self) -> Dataset[Windows]:
        config, channels = self.config, self.net.trunk.in_channels
        annotated = WindowDataset(
            self.archive, self.data.references, self.data.classes, config, channels=channels
        )
        if config.semi_supervised is None:
            return annotated
        return MixedWindows(annotated, self.unlabelled, config.semi_supervised.batch_size)

    def _step(self, step: int, batch: Windows) -> StepLoss:
        config = self.config
        set_lr(self.optimiser, step, config.schedule)
        images = batch.images.to(self.device, non_blocking=True)
        targets = batch.targets.to(self.device, non_blocking=True)
        loss: StepLoss = self.objective(step, images, targets)
        self.optimiser.zero_grad(set_to_none=True)
        loss.total.backward()  # type: ignore[no-untyped-call]
        norm = gradient_norm(self.objective.parameters())
        # The device is waited for once.
        finite = torch.stack([loss.total.detach(), norm.to(loss.total)]).isfinite().tolist()
        if not all(finite):
            shown = ", ".join(f"{name} {value.item():g}" for name, value in loss.terms.items())
            raise JobError(
                f"the {'gradient' if finite[0] else 'loss'} is not finite at step {step + 1} ({shown}; "
                f"images: {', '.join(sorted(set(batch.ids)))}); start with a lower optimiser.lr or "
                "with optimiser.clip_norm in a new folder (run=...)"
            )
        if config.optimiser.clip_norm:
            nn.utils.clip_grads_with_norm_(self.objective.parameters(), config.optimiser.clip_norm, norm)
        self.optimiser.step()
        return loss

    def _log_training(self, log: MetricsLog, step: int, loss: StepLoss, rate: float) -> None:
        groups = self.optimiser.param_groups
        log.write(
            step,
            {
                "loss": loss.total.item(),
                **{name: value.item() for name, value in loss.terms.items()},
                "lr": groups[0]["lr"],
                "encoder/lr": groups[-1]["lr"],
                "images_per_second": rate,
            },
        )

    def _validate(self, log: MetricsLog, step: int) -> None:
        scores = score_images(self.predictor, self.archive, [r.index for r in self.data.validation])
        log.write(
            step,
            {
                "val/mean_dice": scores.mean_dice,
                **{f"val/dice/{name}": value for name, value in scores.dice.items()},
                "val/mean_iou": scores.mean_iou,
                "val/pixel_accuracy": scores.pixel_accuracy,
            },
        )
        # The masks show a foreground class (checked at the start), so there is a mean.
        if scores.mean_dice is not None and scores.mean_dice > self.best.mean_dice:
            self.best = Best(step, scores.mean_dice)
            self.folder.checkpoints.save_best(step, {"model": _on_cpu(self.net), **vars(self.best)})

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.net.state_dict(),
            "extra": self.objective.extra.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "best_step": self.best.step,
            "best_mean_dice": self.best.mean_dice,
        }

    def _resume(self) -> int:
        state = self.folder.checkpoints.load_latest()
        if state is None:
            return 0
        self.net.load_state_dict(state["model"])
        self.objective.extra.load_state_dict(state["extra"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.best = Best(int(state["best_step"]), float(state["best_mean_dice"]))
        return int(state["step"])

    def _finish(self) -> None:
        best = self.folder.checkpoints.load_best() if self.data.validation else None
        record: dict[str, Any] = {"step": self.config.schedule.steps, "mean_dice": None}
        if best is not None:
            self.net.load_state_dict(best["model"])
            record = {"step": int(best["step"]), "mean_dice": float(best["mean_dice"])}
        collection = self.data.collection
        card = ModelCard(
            self.net.trunk.config, collection.classes, collection.background, collection.ignore_classes
        )
        self.folder.check_owner()
        save_segmentation(self.folder.path / MODEL_FILE, self.net, card)
        self.folder.update(best=record)


def score_images(predictor: Predictor, archive: Archive, indices: list[int]) -> Scores:
    """Predict annotated images of an archive and score them together."""
    matrix = ConfusionMatrix(predictor.classes)
    for index in indices:
        matrix.update(predictor.archive_image(archive, index), archive.read_mask(index))
    return matrix.scores()


def _on_cpu(net: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().cpu() for key, value in net.state_dict().items()}


def _check_archive(folder: RunFolder, archive: Archive) -> None:
    """A run goes on with the archive it began with, or its numbers would be of no one configuration."""
    known = folder.record.get("archive")
    if known is None:
        folder.update(archive=archive.fingerprint)
    elif known != archive.fingerprint:
        raise UserError(
            f"{archive.path}: has changed since the run {folder.path} began; restore it, or start a new run "
            "with run=..."
        )
