"""Fine-tuning of trunk and classifier on the annotated images (spec section 7)."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pscl_hpc.archive import Archive
from pscl_hpc.config import FinetuneConfig
from pscl_hpc.errors import JobError, UserError
from pscl_hpc.models import MODEL_FILE, ModelCard, SegmentationNet, UNet, load_trunk, save_segmentation
from pscl_hpc.progress import Progress
from pscl_hpc.runs import MetricsLog, RunFolder
from pscl_hpc.seeding import derive_seed, torch_generator
from pscl_hpc.segmentation.data import FinetuneData, WindowDataset, Windows, select_data
from pscl_hpc.segmentation.inference import Predictor
from pscl_hpc.segmentation.losses import LossTerms, SegmentationLoss, class_weights
from pscl_hpc.segmentation.metrics import ConfusionMatrix, Scores
from pscl_hpc.training import autocast, build_optimiser, parameter_groups, set_lr, setup_device
from pscl_hpc.views import jitter


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
        JobError: the loss is not finite; names the step and the images.
    """
    device = setup_device(config.runtime)
    with Archive(config.data.archive) as archive:
        data = select_data(config, archive)
        net = build_net(config, data.classes.count)
        folder = RunFolder.start(config, device)
        if folder.done:
            return folder
        with folder:
            _check_archive(folder, archive)
            _Training(config, archive, data, net.to(device), device, folder).run(progress=progress)
    return folder


def build_net(config: FinetuneConfig, classes: int) -> SegmentationNet:
    """The network before the first step: pretrained or seeded trunk, seeded classifier."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "weights"))
        trunk = load_trunk(config.pretrained) if config.pretrained else UNet(config.model)
        torch.manual_seed(derive_seed(config.seed, "classifier"))
        return SegmentationNet(trunk, classes)


def optimiser_groups(net: SegmentationNet, config: FinetuneConfig) -> list[dict[str, Any]]:
    """Decoder and classifier at ``optimiser.lr``; a pretrained encoder at its share of it."""
    rate, decay = config.optimiser.lr, config.optimiser.weight_decay
    scale = config.encoder_lr_scale if config.pretrained else 1.0
    return [
        *parameter_groups(nn.ModuleList([net.trunk.decoder, net.classifier]), rate, decay),
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
        net: SegmentationNet,
        device: torch.device,
        folder: RunFolder,
    ) -> None:
        self.config = config
        self.archive = archive
        self.data = data
        self.net = net
        self.device = device
        self.folder = folder
        self.optimiser = build_optimiser(optimiser_groups(net, config), config.optimiser)
        self.loss = SegmentationLoss(
            data.classes,
            class_weights(config.loss.class_weights, data.pixels),
            ce_weight=config.loss.ce_weight,
            dice_weight=config.loss.dice_weight,
        ).to(device)
        self.predictor = Predictor(net, data.classes, device, runtime=config.runtime)
        self.best = Best()

    def run(self, *, progress: bool) -> None:
        config, steps = self.config, self.config.schedule.steps
        start = self._resume()
        log = self.folder.metrics_log()
        log.rewind(start)
        windows = WindowDataset(
            self.archive,
            self.data.references,
            self.data.classes,
            config,
            channels=self.net.trunk.config.in_channels,
        )
        loader: DataLoader[Windows] = DataLoader(
            windows,
            batch_size=None,
            sampler=range(start, steps),
            num_workers=config.runtime.workers,
            multiprocessing_context="forkserver" if config.runtime.workers else None,
            pin_memory=self.device.type == "cuda",
        )
        self.net.train()
        seen, since = 0, time.perf_counter()
        with Progress("finetune", steps, start, unit="step", show=progress) as bar:
            for step, batch in enumerate(loader, start + 1):
                terms = self._step(step - 1, batch)
                seen += len(batch.images)
                if step % config.log.every_steps == 0 or step == steps:
                    rate = seen / max(1e-9, time.perf_counter() - since)
                    self._log_training(log, step, terms, rate)
                    seen, since = 0, time.perf_counter()
                pause = time.perf_counter()
                if self.data.validation and (step % config.validate_every == 0 or step == steps):
                    self._validate(log, step)
                if step % config.checkpoint.every_steps == 0 or step == steps:
                    self.folder.checkpoints.save(step, self._state())
                since += time.perf_counter() - pause
                bar.advance(f"loss {terms.total.item():.3f}")
        log.close()
        self._finish()

    def _step(self, step: int, batch: Windows) -> LossTerms:
        config = self.config
        set_lr(self.optimiser, step, config.schedule)
        images = batch.images.to(self.device, non_blocking=True)
        images = jitter(images, config.jitter, torch_generator(config.seed, "jitter", step))
        targets = batch.targets.to(self.device, non_blocking=True)
        with autocast(self.device, config.runtime):
            logits = self.net(images)
        terms: LossTerms = self.loss(logits, targets)
        if not torch.isfinite(terms.total):
            raise JobError(
                f"the loss is not finite at step {step + 1} (cross entropy {terms.cross_entropy.item():g}, dice "
                f"{terms.dice.item():g}; images: {', '.join(sorted(set(batch.ids)))}); lower optimiser.lr or "
                "set optimiser.clip_norm"
            )
        self.optimiser.zero_grad(set_to_none=True)
        terms.total.backward()  # type: ignore[no-untyped-call]
        if config.optimiser.clip_norm:
            nn.utils.clip_grad_norm_(self.net.parameters(), config.optimiser.clip_norm)
        self.optimiser.step()
        return terms

    def _log_training(self, log: MetricsLog, step: int, terms: LossTerms, rate: float) -> None:
        groups = self.optimiser.param_groups
        log.write(
            step,
            {
                "loss": terms.total.item(),
                "ce": terms.cross_entropy.item(),
                "dice_loss": terms.dice.item(),
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
            "optimiser": self.optimiser.state_dict(),
            "best_step": self.best.step,
            "best_mean_dice": self.best.mean_dice,
        }

    def _resume(self) -> int:
        state = self.folder.checkpoints.load_latest()
        if state is None:
            return 0
        self.net.load_state_dict(state["model"])
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
