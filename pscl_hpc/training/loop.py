"""The training loop: takes a :class:`Task` from the newest checkpoint of its run to the last step."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from pscl_hpc.config import TrainingConfig
from pscl_hpc.errors import JobError
from pscl_hpc.models.recompute import checkpoint_blocks
from pscl_hpc.progress import Progress
from pscl_hpc.runs import BackgroundWriter, MetricsLog, RunFolder
from pscl_hpc.training.batchnorm import synchronise_batchnorm
from pscl_hpc.training.device import own_cpus, peak_memory_mb
from pscl_hpc.training.loader import read_ahead
from pscl_hpc.training.optimiser import build_optimiser, gradient_norm, set_lr
from pscl_hpc.training.random_state import random_state
from pscl_hpc.training.ranks import Ranks
from pscl_hpc.training.reduce import data_parallel
from pscl_hpc.training.replay import save_failure
from pscl_hpc.training.stopping import StopRequested, stop_reason
from pscl_hpc.training.task import StepLoss, Task

_GPU_POLL_STEPS = 5
"""Steps of several GPUs between two checks for a request to stop, in which all ranks take part."""
_SMOOTHING = 0.98
"""Share of the old value in the running mean of the loss."""


@dataclass
class Position:
    """How far a run is: with weights and optimiser all that a resumed run needs."""

    step: int = 0
    """Steps done."""
    smooth_loss: float = math.nan
    """Running mean of the loss."""
    best_step: int = 0
    best_score: float = -math.inf
    """Highest score of a validation, or minus the lowest smoothed loss of a checkpoint."""


class Loop:
    """State and steps of a run.

    Args:
        task: What is trained.
        folder: The run folder; rank 0 writes it.
        ranks: The ranks that train together.
    """

    def __init__(self, task: Task[Any], folder: RunFolder, ranks: Ranks) -> None:
        self.task = task
        self.folder = folder
        self.ranks = ranks
        config = folder.decided_config
        assert isinstance(config, TrainingConfig)
        self.config = config
        self.optimiser = build_optimiser(task.parameter_groups(), self.config.optimiser)
        self.position = Position()
        # Rank 0 alone looks for the checkpoint: on a shared file system other ranks may see an older state.
        state = ranks.from_first(folder.checkpoints.load_latest)
        if state is not None:
            task.load_state(state)
            self.optimiser.load_state_dict(state["optimiser"])
            self.position = Position(**{field.name: state[field.name] for field in fields(Position)})
        runtime = self.config.runtime
        if runtime.activation_checkpointing:
            checkpoint_blocks(task.module)
        self._restore_batchnorm: Callable[[], None] = lambda: None
        if ranks.group is not None and runtime.sync_batchnorm:
            self._restore_batchnorm = synchronise_batchnorm(task.module, ranks.group)
        self._parallel = data_parallel(task.module, None if task.joint else ranks.group)
        self._writer = BackgroundWriter(folder.checkpoints)
        self._saved_at = time.monotonic()
        self._random: dict[str, Tensor] | None = None
        """State of the global generators before the step, in a run that saves a failed step."""

    def run(self, *, progress: bool = False) -> None:
        """Train to the last step and export.

        Raises:
            StopRequested: between two steps, with the state saved.
        """
        log = self._begin() if self.ranks.first else None
        self._random = {}
        try:
            self._train(log, progress=progress)
            self._writer.flush()
        finally:
            self._writer.close()
            if log is not None:
                log.close()
        self.ranks.beat(self.position.step, "exporting")
        if self.ranks.first:
            self._export()

    def _begin(self) -> MetricsLog:
        """Print warnings, record what this attempt starts from, and open the log at this step. For rank 0 alone."""
        task, folder, step = self.task, self.folder, self.position.step
        for sentence in task.warnings():
            self.ranks.say(sentence)
        workers, cpus = self.config.runtime.workers, own_cpus(self.ranks.place.local_world)
        if workers > cpus:
            self.ranks.say(
                f"warning: runtime.workers is {workers}, but they and the training share {cpus} "
                f"CPU{'s' if cpus > 1 else ''}; set it to {cpus} or less"
            )
        folder.update(archive=task.archive.fingerprint, **task.record())
        world = self.ranks.world
        before = folder.attempts[-2].get("ranks", 1) if len(folder.attempts) > 1 else world
        folder.record_first_step(step)
        if step and before != world:
            self.ranks.say(
                f"resumed after step {step} with {world} rank(s) instead of {before}: each step uses the same images, "
                "but their sums are taken in another order, so numbers agree up to rounding"
            )
        log = folder.metrics_log()
        log.rewind(step)
        return log

    def _train(self, log: MetricsLog | None, *, progress: bool) -> None:
        """All steps that are left, with their logs, validations and checkpoints; ``log`` is None but for rank 0."""
        config, ranks, position = self.config, self.ranks, self.position
        steps, count = config.schedule.steps, self.task.accumulate
        on_gpu = ranks.device.type == "cuda"
        numbers = range(position.step * count, steps * count)
        batches = read_ahead(self.task.dataset, numbers, workers=config.runtime.workers, pin=on_gpu)
        poll = _GPU_POLL_STEPS if on_gpu and ranks.world > 1 else 1
        bar = Progress(config.kind, steps, position.step, unit="step", show=progress and ranks.first)
        since, images = time.perf_counter(), 0
        try:
            with bar:
                for step in range(position.step + 1, steps + 1):
                    last = step == steps
                    monitor = self.task.monitor_every and (
                        step % self.task.monitor_every == 0 or step == 1 or last
                    )
                    measure = step == 1 or step % config.log.every_steps == 0 or last or bool(monitor)
                    ranks.beat(step - 1, "reading images")
                    micro_batches = [next(batches) for _ in range(count)]
                    ranks.beat(step - 1, "computing")
                    values = self.step(micro_batches, measure=measure)
                    images += ranks.world * sum(len(batch.ids) for batch in micro_batches)
                    bar.advance(f"loss {values['loss']:.4f}")
                    if measure:
                        values = ranks.mean(values)
                        if log is not None:
                            rate = images / max(1e-9, time.perf_counter() - since)
                            self._log(log, {**values, **(self.task.monitor() if monitor else {})}, rate)
                        since, images = time.perf_counter(), 0
                    pause = time.perf_counter()
                    self._save_when_due(self._validate(log, last=last), last=last)
                    since += time.perf_counter() - pause
                    if step % poll == 0 and not last:
                        self._stop_if_requested()
        finally:
            # Ends the reading processes here: an exception would keep them until the interpreter exits.
            del batches

    def step(self, micro_batches: list[Any], *, measure: bool) -> dict[str, float]:
        """One update from the gradient of the mean loss of the micro-batches.

        Returns:
            Loss, learning rates and norm of the gradient; with ``measure`` also the terms of this rank, means over the
            micro-batches.

        Raises:
            JobError: loss or gradient is not finite; the weights are left as they were.
        """
        task, config = self.task, self.config
        task.module.train()
        first = self.position.step * task.accumulate
        if self._random is not None:
            self._random = random_state()
        rates = set_lr(self.optimiser, self.position.step, config.schedule)
        self.optimiser.zero_grad(set_to_none=True)
        losses = self._backward(micro_batches, first, measure=measure)
        count = len(losses)
        norm = gradient_norm(task.module.parameters())
        # The only wait for the device in a step, when all of its work is queued.
        *totals, size = torch.stack([loss.total for loss in losses] + [norm.to(losses[0].total)]).tolist()
        for index, total in enumerate(totals):
            if not math.isfinite(total):
                self._raise_not_finite("loss", losses[index], first + index, micro_batches)
        if not math.isfinite(size):
            self._raise_not_finite("gradient", losses[-1], first + count - 1, micro_batches)
        values = {"loss": sum(totals) / count}
        if measure:
            for key in losses[0].terms:
                values[key] = sum(float(loss.terms[key]) for loss in losses) / count
        if config.optimiser.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(task.module.parameters(), config.optimiser.clip_norm, norm)
        self.optimiser.step()
        self.position.step += 1
        task.after_step(self.position.step / config.schedule.steps)
        old = values["loss"] if math.isnan(self.position.smooth_loss) else self.position.smooth_loss
        self.position.smooth_loss = _SMOOTHING * old + (1 - _SMOOTHING) * values["loss"]
        return {**values, **rates, "gradient_norm": size}

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {**self.task.state(), "optimiser": self.optimiser.state_dict(), **asdict(self.position)}

    def _backward(self, micro_batches: list[Any], first: int, *, measure: bool) -> list[StepLoss]:
        """The losses of a step, whose mean has its gradient in the parameters; ``first`` numbers the first batch."""
        task, count = self.task, len(micro_batches)
        if task.joint:
            return [task.joint_backward(micro_batches, first, measure=measure)]
        losses: list[StepLoss] = []
        for index, batch in enumerate(micro_batches):
            with self._gradients(reduce=index + 1 == count):
                loss = task.loss(self._parallel, batch, first + index, measure=measure)
                (loss.total / count).backward()  # type: ignore[no-untyped-call]
            terms = {name: term.detach() for name, term in loss.terms.items()}
            losses.append(StepLoss(loss.total.detach(), terms))
        return losses

    def _gradients(self, *, reduce: bool) -> AbstractContextManager[None]:
        """Around a forward and backward pass: the last one of a step sums the gradients of all over the ranks."""
        if reduce or not isinstance(self._parallel, DistributedDataParallel):
            return nullcontext()
        return self._parallel.no_sync()

    def _validate(self, log: MetricsLog | None, *, last: bool) -> float | None:
        """Score of the weights, when a validation is due."""
        every, step = self.task.validate_every, self.position.step
        if not every or (step % every and not last):
            return None
        self.ranks.beat(step, "validating")
        score, values = self.task.validate(step)
        if log is not None:
            log.write(step, values)
        return score

    def _save_when_due(self, score: float | None, *, last: bool) -> None:
        position, every = self.position, self.config.checkpoint
        due = position.step % every.every_steps == 0 or last
        if self.task.keep_lowest_loss and due:
            score = -position.smooth_loss
        best = score is not None and score > position.best_score
        if best and score is not None:
            position.best_step, position.best_score = position.step, score
        # A checkpoint due by the clock is never compared: which one is the best must not differ from run to run.
        late = 0 < every.every_minutes <= (time.monotonic() - self._saved_at) / 60
        if self.ranks.first and (due or late or best):
            self._save(newest=due or late, best=best)

    def _save(self, *, newest: bool = True, best: bool = False) -> None:
        self._writer.save(self.position.step, self.state(), newest=newest, best=best)
        if newest:
            self._saved_at = time.monotonic()

    def _stop_if_requested(self) -> None:
        reason = self.ranks.agree_to_stop(stop_reason())
        if reason is None:
            return
        step, path = self.position.step, self.folder.path
        if self.ranks.first:
            if self._writer.saved != step:
                self._save()
            self._writer.flush()
            self.folder.stop(reason)
        # A launcher may kill all ranks when the first one ends.
        self.ranks.barrier()
        # A command that did not name the folder would begin a new one.
        named = "" if self.folder.config.run else f" with run={shlex.quote(str(path))}"
        raise StopRequested(reason, f"saved after step {step}; to resume, run the same command{named}")

    def _export(self) -> None:
        """Write the results of the best weights. The other ranks take no part."""
        self._restore_batchnorm()
        best = self.folder.checkpoints.load_best() if self.task.validate_every else None
        if best is not None:
            self.task.load_state(best)
        self.folder.check_owner()
        step, score = (best["best_step"], best["best_score"]) if best else (self.position.step, None)
        self.task.export(self.folder, step, score)

    def _log(self, log: MetricsLog, values: dict[str, float], rate: float) -> None:
        costs = {"images_per_second": round(rate, 3), "memory_mb": round(peak_memory_mb(self.ranks.device))}
        if self._writer.seconds is not None:
            costs["checkpoint_seconds"] = round(self._writer.seconds, 3)
        log.write(self.position.step, {**values, **costs})

    def _raise_not_finite(self, what: str, loss: StepLoss, number: int, micro_batches: list[Any]) -> NoReturn:
        """Save the failed step for a replay; raise JobError with the terms and images of the batch ``number``."""
        terms = {"loss": loss.total, **loss.terms}
        shown = ", ".join(f"{key}={float(value):g}" for key, value in terms.items())
        images = ", ".join(dict.fromkeys(self.task.image_ids(number)))
        if self.ranks.first:
            self._writer.flush()
        saved = self.folder.checkpoints.steps()
        replay = ""
        if self._random is not None and self.ranks.first:
            state = self.task.state()
            if save_failure(self.folder, self.position.step, state, self._random, micro_batches):
                replay = f"; 'pscl-hpc replay {shlex.quote(str(self.folder.path))}' shows where it arises"
        kept = f"; the checkpoint of step {saved[-1]} is kept in {self.folder.path}" if saved else ""
        raise JobError(
            f"the {what} is not finite at step {self.position.step + 1} ({shown}; images: {images}); start again with "
            f"a lower optimiser.lr or with optimiser.clip_norm=1 in a new folder (run=...){kept}{replay}"
        )
