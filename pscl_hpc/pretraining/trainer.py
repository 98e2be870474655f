"""The pretraining loop. It knows no method by name."""

from __future__ import annotations

import math
import resource
import time
from dataclasses import dataclass
from typing import Any

import torch

from pscl_hpc.archive import Archive
from pscl_hpc.config import PretrainConfig
from pscl_hpc.errors import JobError
from pscl_hpc.methods import Method, build_method
from pscl_hpc.models import TRUNK_FILE, save_trunk
from pscl_hpc.pretraining.data import Batch, PretrainData, make_views
from pscl_hpc.pretraining.inspection import inspect_run
from pscl_hpc.progress import Progress
from pscl_hpc.runs import MetricsLog, RunFolder
from pscl_hpc.seeding import Draws, derive_seed
from pscl_hpc.training import autocast, build_optimiser, parameter_groups, set_lr, setup_device

_SMOOTHING = 0.98
"""Share of the old value in the running mean of the loss that decides the best checkpoint."""


@dataclass
class _Progress:
    """What a resumed run needs besides weights and optimiser; all random draws are functions of the step."""

    step: int = 0
    smooth_loss: float = math.nan
    best_loss: float = math.inf


def pretrain(config: PretrainConfig, *, progress: bool = False) -> RunFolder:
    """Run or continue a pretraining.

    Args:
        config: Checked configuration.
        progress: Show a progress bar.

    Returns:
        The run folder, with ``trunk.safetensors`` and ``inspection.npz``.

    Raises:
        UserError: for wrong input, before anything is written.
        JobError: when the loss is not finite.
    """
    device = setup_device(config.runtime)
    with Archive(config.data.archive) as archive:
        data = PretrainData(archive, config)
        folder = RunFolder.start(config, device)
        if folder.done:
            return folder
        with folder:
            Trainer(config, data, folder, device).run(progress=progress)
    return folder


class Trainer:
    """State and steps of one pretraining."""

    def __init__(
        self, config: PretrainConfig, data: PretrainData, folder: RunFolder, device: torch.device
    ) -> None:
        self.config = config
        self.data = data
        self.folder = folder
        self.device = device
        torch.manual_seed(derive_seed(config.seed, "weights"))
        self.method: Method = build_method(config, data.setting).to(device)
        groups = parameter_groups(self.method, config.optimiser.lr, config.optimiser.weight_decay)
        self.optimiser = build_optimiser(groups, config.optimiser)
        self.at = _Progress()
        self.restore(folder.checkpoints.load_latest())

    def run(self, *, progress: bool) -> None:
        """Train to the last step, then export the trunk and the pictures of the report."""
        config, log = self.config, self.folder.metrics_log()
        log.rewind(self.at.step)
        batches = self.data.batches(self.at.step * config.accumulate)
        with Progress("pretraining", config.schedule.steps, self.at.step, unit="step", show=progress) as bar:
            clock, images = time.perf_counter(), 0
            while self.at.step < config.schedule.steps:
                last = self.at.step + 1 == config.schedule.steps
                measure = (self.at.step + 1) % config.log.every_steps == 0 or self.at.step == 0 or last
                parts = [next(batches) for _ in range(config.accumulate)]
                terms = self.step(parts, measure=measure)
                images += sum(len(part.ids) for part in parts)
                bar.advance(f"loss {terms['loss']:.4f}")
                if measure:
                    rate = images / (time.perf_counter() - clock)
                    self._log(log, terms, rate)
                    clock, images = time.perf_counter(), 0
                if self.at.step % config.checkpoint.every_steps == 0 or last:
                    self._save()
        log.close()
        save_trunk(self.folder.path / TRUNK_FILE, self.method.trunk)
        inspect_run(self.method, self.data, self.folder.path, self.device)

    def step(self, batches: list[Batch], *, measure: bool) -> dict[str, float]:
        """One optimiser step over one batch, in ``accumulate`` parts.

        Returns:
            ``loss``, ``lr`` and the method's terms, means over the parts.

        Raises:
            JobError: when the loss is not finite, naming step, terms and images; the weights stay as they were.
        """
        self.method.train()
        lr = set_lr(self.optimiser, self.at.step, self.config.schedule)
        self.optimiser.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        for part, batch in enumerate(batches):
            number = self.at.step * self.config.accumulate + part
            views = make_views(batch, self.config, number, self.device)
            draws = Draws(self.config.seed, number, batch.slots.places, self.device)
            with autocast(self.device, self.config.runtime):
                output = self.method(views, draws, measure)
            terms = {
                "loss": float(output.loss.detach()),
                **{key: float(value) for key, value in output.terms.items()},
            }
            if not math.isfinite(terms["loss"]):
                self._stop_not_finite(terms, batch)
            (output.loss / len(batches)).backward()
            for key, value in terms.items():
                sums[key] = sums.get(key, 0.0) + value / len(batches)
        if self.config.optimiser.clip_norm:
            norm = torch.nn.utils.clip_grad_norm_(self.method.parameters(), self.config.optimiser.clip_norm)
            sums["gradient_norm"] = float(norm)
        self.optimiser.step()
        self.at.step += 1
        self.method.after_step(self.at.step / self.config.schedule.steps)
        old = sums["loss"] if math.isnan(self.at.smooth_loss) else self.at.smooth_loss
        self.at.smooth_loss = _SMOOTHING * old + (1 - _SMOOTHING) * sums["loss"]
        return {**sums, "lr": lr}

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "method": self.method.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "smooth_loss": self.at.smooth_loss,
            "best_loss": self.at.best_loss,
            "archive": self.data.archive.fingerprint,
        }

    def restore(self, state: dict[str, Any] | None) -> None:
        """Continue from a checkpoint, if there is one.

        Raises:
            JobError: when the archive is not the one that the run began with.
        """
        if state is None:
            return
        if state["archive"] != self.data.archive.fingerprint:
            raise JobError(
                f"{self.data.archive.path}: has changed since this run began; "
                "restore it, or start a new run with run=..."
            )
        self.method.load_state_dict(state["method"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.at = _Progress(int(state["step"]), float(state["smooth_loss"]), float(state["best_loss"]))

    def _save(self) -> None:
        if self.config.checkpoint.keep_best and self.at.smooth_loss < self.at.best_loss:
            self.at.best_loss = self.at.smooth_loss
            self.folder.checkpoints.save_best(self.at.step, self.state())
        self.folder.checkpoints.save(self.at.step, self.state())

    def _log(self, log: MetricsLog, terms: dict[str, float], rate: float) -> None:
        memory = round(_peak_memory(self.device))
        log.write(self.at.step, {**terms, "images_per_second": round(rate, 3), "memory_mb": memory})

    def _stop_not_finite(self, terms: dict[str, float], batch: Batch) -> None:
        shown = ", ".join(f"{key}={value:g}" for key, value in terms.items())
        raise JobError(
            f"the loss is not finite at step {self.at.step + 1} ({shown}); images: {', '.join(batch.ids)}; "
            f"the last checkpoint in {self.folder.path} is intact: lower optimiser.lr or set optimiser.clip_norm=1"
        )


def _peak_memory(device: torch.device) -> float:
    """Peak memory in MB: of the GPU's allocator, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
