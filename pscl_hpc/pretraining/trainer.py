"""The pretraining loop. It knows no method by name."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch.nn.parallel import DistributedDataParallel

from pscl_hpc.archive import Archive
from pscl_hpc.errors import JobError, UserError
from pscl_hpc.methods import Method, MethodOutput, build_method
from pscl_hpc.models import TRUNK_FILE, build_trunk, save_trunk
from pscl_hpc.pretraining.config import PretrainConfig
from pscl_hpc.pretraining.data import Batch, PretrainData, make_views
from pscl_hpc.pretraining.inspection import inspect_run
from pscl_hpc.pretraining.notices import notices
from pscl_hpc.progress import Progress
from pscl_hpc.runs import BackgroundWriter, MetricsLog, RunFolder, deserialise
from pscl_hpc.seeding import Draws, derive_seed
from pscl_hpc.training import (
    Ranks,
    StopRequested,
    autocast,
    build_optimiser,
    checkpoint_blocks,
    data_parallel,
    gradient_norm,
    how_to_go_on,
    join_ranks,
    parameter_groups,
    scaled_lr,
    set_lr,
    stop_reason,
    synchronise_batchnorm,
)
from pscl_kernels import available_backends

_GPU_POLL_STEPS = 5
"""Steps on GPUs between two looks at a request to stop: all ranks look together."""
_SMOOTHING = 0.98
"""Share of the old value in the running mean of the loss that decides the best checkpoint."""


@dataclass
class _Progress:
    """What a resumed run needs besides weights and optimiser; all random draws are functions of the step."""

    step: int = 0
    smooth_loss: float = math.nan
    best_loss: float = math.inf


def pretrain(config: PretrainConfig, *, progress: bool = False) -> RunFolder:
    """Run or continue a pretraining, with the other ranks when the environment speaks of any.

    Args:
        config: Checked configuration.
        progress: Show a progress bar.

    Returns:
        The run folder, with ``trunk.safetensors`` and ``inspection.npz``.

    Raises:
        UserError: for wrong input, before anything is written.
        JobError: when loss or gradient is not finite, a checkpoint cannot be written, a rank is lost, or another
            attempt has taken over the run.
        StopRequested: when it stopped on request; the state is saved.
    """
    with join_ranks(config.runtime) as ranks, Archive(config.data.archive) as archive:
        data = PretrainData(archive, config, ranks.rank, ranks.world)
        _check_kernels(config, ranks.device)
        folder = _open_folder(config, ranks)
        if not folder.done:
            with folder, ranks.watch():
                Trainer(config, data, folder, ranks).run(progress=progress)
    return folder


class Trainer:
    """State and steps of one pretraining."""

    def __init__(self, config: PretrainConfig, data: PretrainData, folder: RunFolder, ranks: Ranks) -> None:
        self.config = config
        self.data = data
        self.folder = folder
        self.ranks = ranks
        self.device = ranks.device
        torch.manual_seed(derive_seed(config.seed, "weights"))
        self.method: Method = build_method(config.method, build_trunk(config.model), data.setting).to(
            self.device
        )
        self.method.process_group = ranks.group
        rate = scaled_lr(config.optimiser, config.batch_size)
        groups = parameter_groups(self.method, rate, config.optimiser.weight_decay)
        self.optimiser = build_optimiser(groups, config.optimiser)
        self.at = _Progress()
        # Rank 0 alone looks for the checkpoint: another one's view of a shared file system may be older.
        found = ranks.broadcast(folder.checkpoints.latest() if ranks.first else None)
        self.restore(None if found is None else deserialise(found))
        if config.runtime.activation_checkpointing:
            checkpoint_blocks(self.method)
        self._part_batchnorm: Callable[[], None] = lambda: None
        if ranks.group is not None and config.runtime.sync_batchnorm:
            self._part_batchnorm = synchronise_batchnorm(self.method, ranks.group)
        self._parallel = data_parallel(self.method, ranks.group)
        self._writer = BackgroundWriter(folder.checkpoints)
        self._saved_at = time.monotonic()

    def run(self, *, progress: bool) -> None:
        """Train to the last step, then export the trunk and the pictures of the report.

        Raises:
            StopRequested: at a step boundary, with the state saved.
        """
        try:
            self._train(progress=progress)
            self._writer.flush()
        finally:
            self._writer.close()
        self.ranks.beat(self.at.step, "exporting")
        if self.ranks.first:
            self._export()

    def _train(self, *, progress: bool) -> None:
        config, ranks = self.config, self.ranks
        if ranks.first:
            for sentence in notices(config, [record.split for record in self.data.records]):
                ranks.say(sentence)
        log = self._begin_log() if ranks.first else None
        batches = self.data.batches(self.at.step * config.accumulate)
        poll = _GPU_POLL_STEPS if self.device.type == "cuda" else 1
        show = progress and ranks.first
        with Progress("pretraining", config.schedule.steps, self.at.step, unit="step", show=show) as bar:
            clock, images = time.perf_counter(), 0
            while self.at.step < config.schedule.steps:
                last = self.at.step + 1 == config.schedule.steps
                measure = (self.at.step + 1) % config.log.every_steps == 0 or self.at.step == 0 or last
                ranks.beat(self.at.step, "reading images")
                parts = [next(batches) for _ in range(config.accumulate)]
                ranks.beat(self.at.step, "computing")
                terms = self.step(parts, measure=measure)
                images += ranks.world * sum(len(part.ids) for part in parts)
                bar.advance(f"loss {terms['loss']:.4f}")
                if measure:
                    terms = ranks.mean(terms)
                    if log is not None:
                        self._log(log, terms, images / (time.perf_counter() - clock))
                    clock, images = time.perf_counter(), 0
                self._save_when_due(last)
                if self.at.step % poll == 0 and not last:
                    self._stop_if_asked()
        if log is not None:
            log.close()

    def step(self, batches: list[Batch], *, measure: bool) -> dict[str, float]:
        """One optimiser step over one batch, in ``accumulate`` parts.

        Returns:
            ``loss``, ``lr`` and, with ``measure``, the method's terms of this rank, means over the parts.

        Raises:
            JobError: when loss or gradient is not finite, naming step, terms and images; the weights stay as they were.
        """
        self.method.train()
        lr = set_lr(self.optimiser, self.at.step, self.config.schedule)
        self.optimiser.zero_grad(set_to_none=True)
        outputs: list[MethodOutput] = []
        for part, batch in enumerate(batches):
            number = self.at.step * self.config.accumulate + part
            views = make_views(batch, self.config, number, self.device)
            draws = Draws(self.config.seed, number, batch.slots.places, self.device)
            with self._gradients(summed=part + 1 == len(batches)):
                with autocast(self.device, self.config.runtime):
                    output = self._parallel(views, draws, measure)
                (output.loss / len(batches)).backward()
            outputs.append(MethodOutput(output.loss.detach(), output.terms))
        norm = gradient_norm(self.method.parameters())
        # The device is waited for once, when all of its work is under way.
        *losses, size = torch.stack([output.loss for output in outputs] + [norm.to(outputs[0].loss)]).tolist()
        for part, loss in enumerate(losses):
            if not math.isfinite(loss):
                self._stop_not_finite("loss", outputs[part], self.at.step * self.config.accumulate + part)
        if not math.isfinite(size):
            self._stop_not_finite(
                "gradient", outputs[-1], self.at.step * self.config.accumulate + len(batches) - 1
            )
        sums = {"loss": sum(losses) / len(losses)}
        if measure:
            for key in outputs[0].terms:
                sums[key] = sum(float(output.terms[key]) for output in outputs) / len(outputs)
        if self.config.optimiser.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(
                self.method.parameters(), self.config.optimiser.clip_norm, norm
            )
            sums["gradient_norm"] = size
        self.optimiser.step()
        self.at.step += 1
        self.method.after_step(self.at.step / self.config.schedule.steps)
        old = sums["loss"] if math.isnan(self.at.smooth_loss) else self.at.smooth_loss
        self.at.smooth_loss = _SMOOTHING * old + (1 - _SMOOTHING) * sums["loss"]
        return {**sums, "lr": lr}

    def _gradients(self, *, summed: bool) -> AbstractContextManager[None]:
        """Whether this backward pass sums over the ranks: that of the last part does, of all parts together."""
        if summed or not isinstance(self._parallel, DistributedDataParallel):
            return nullcontext()
        return self._parallel.no_sync()

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
            UserError: when the archive is not the one that the run began with.
        """
        if state is None:
            return
        if state["archive"] != self.data.archive.fingerprint:
            raise UserError(
                f"{self.data.archive.path}: has changed since this run began; "
                "restore it, or start a new run with run=..."
            )
        self.method.load_state_dict(state["method"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.at = _Progress(int(state["step"]), float(state["smooth_loss"]), float(state["best_loss"]))

    def _begin_log(self) -> MetricsLog:
        log = self.folder.metrics_log()
        log.rewind(self.at.step)
        before = (
            self.folder.attempts[-2].get("ranks", 1) if len(self.folder.attempts) > 1 else self.ranks.world
        )
        self.folder.goes_on_from(self.at.step)
        self.folder.update(archive=self.data.archive.fingerprint)
        if self.at.step and before != self.ranks.world:
            self.ranks.say(
                f"goes on after step {self.at.step} with {self.ranks.world} rank(s) where there were {before}: the "
                "same images in the same steps, summed in another order, so that numbers agree up to rounding"
            )
        return log

    def _save_when_due(self, last: bool) -> None:
        if not self.ranks.first:
            return
        every = self.config.checkpoint
        minutes = (time.monotonic() - self._saved_at) / 60
        if self.at.step % every.every_steps == 0 or last:
            best = every.keep_best and self.at.smooth_loss < self.at.best_loss
            if best:
                self.at.best_loss = self.at.smooth_loss
            self._save(best=best)
        elif 0 < every.every_minutes <= minutes:
            # Chosen by the clock, so never the best: that must not differ from run to run.
            self._save(best=False)

    def _save(self, *, best: bool) -> None:
        self._writer.save(self.at.step, self.state(), best=best)
        self._saved_at = time.monotonic()

    def _stop_if_asked(self) -> None:
        reason = self.ranks.agree_to_stop(stop_reason())
        if reason is None:
            return
        if self.ranks.first:
            if self._writer.saved != self.at.step:
                self._save(best=False)
            self._writer.flush()
            self.folder.stop(reason)
        # A launcher may kill all ranks when the first one ends.
        self.ranks.barrier()
        raise StopRequested(reason, how_to_go_on(self.folder.path, self.at.step))

    def _export(self) -> None:
        """Trunk and pictures, by rank 0 without the others and from a whole batch."""
        self._part_batchnorm()
        self.method.process_group = None
        self.folder.check_owner()
        save_trunk(self.folder.path / TRUNK_FILE, self.method.trunk)
        data = PretrainData(self.data.archive, self.config)
        inspect_run(self.method, data, self.folder.path, self.device)

    def _log(self, log: MetricsLog, terms: dict[str, float], rate: float) -> None:
        memory = round(_peak_memory(self.device))
        pace = {"images_per_second": round(rate, 3), "memory_mb": memory}
        if self._writer.seconds is not None:
            pace["checkpoint_seconds"] = round(self._writer.seconds, 3)
        kept = {name: value for name, value in terms.items() if self.config.log.keeps(name)}
        log.write(self.at.step, {**kept, **pace})

    def _stop_not_finite(self, what: str, output: MethodOutput, number: int) -> NoReturn:
        terms = {"loss": output.loss, **output.terms}
        shown = ", ".join(f"{key}={float(value):g}" for key, value in terms.items())
        kept = self.folder.checkpoints.steps()
        raise JobError(
            f"the {what} is not finite at step {self.at.step + 1} ({shown}); images: "
            f"{', '.join(self.data.ids(number))}; lower optimiser.lr or set optimiser.clip_norm=1 in a new folder "
            f"(run=...){f'; the checkpoint of step {kept[-1]} stays in {self.folder.path}' if kept else ''}"
        )


def _open_folder(config: PretrainConfig, ranks: Ranks) -> RunFolder:
    """The run folder: rank 0 works in it, the others know where it is."""
    own: list[RunFolder] = []
    # Nothing is written before all ranks have found their input to be right.
    ranks.barrier()

    def start() -> dict[str, Any]:
        own.append(RunFolder.start(config, ranks.device, ranks.nodes if ranks.world > 1 else ()))
        return {"path": str(own[0].path), "done": own[0].done}

    answer = ranks.from_first(start)
    if own:
        return own[0]
    return RunFolder.follow(answer["path"], config, done=answer["done"])


def _check_kernels(config: PretrainConfig, device: torch.device) -> None:
    """Whether the backend that is asked for is there."""
    backend, choices = config.runtime.kernels, available_backends(torch.empty((0, 1), device=device))
    if backend not in ("auto", *choices):
        raise UserError(
            f"runtime.kernels is '{backend}', which does not run on {device.type} here; choose auto, "
            f"{' or '.join(choices)}"
        )


def _peak_memory(device: torch.device) -> float:
    """Peak memory in MB: of the GPU's allocator, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
