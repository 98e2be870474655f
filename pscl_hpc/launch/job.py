"""What a job does: the stage of a run folder, as the console command would do it.

The callable holds nothing but where the run is and what was asked for, for a job that is started again after a node
failure is started from the pickle it was submitted with: where to go on is found in the folder.
"""

from __future__ import annotations

import contextlib
import importlib
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import submitit
from submitit.core.utils import UncompletedJobError
from submitit.helpers import DelayedSubmission

from pscl_hpc.archive.staging import stage_archive
from pscl_hpc.config import Config, load_config
from pscl_hpc.errors import EXIT_FAILED, EXIT_INPUT, EXIT_STOPPED, EXIT_TERMINATED, JobError, UserError
from pscl_hpc.launch.batch import REFUSED, REQUEUE, STOPPED
from pscl_hpc.launch.code import check_source
from pscl_hpc.launch.stopping import CANCELLED, NOTICE, listen, slurm_ends_it
from pscl_hpc.launch.world import World
from pscl_hpc.runs import RunFolder, write_text
from pscl_hpc.runs.lock import is_locked
from pscl_hpc.training.stopping import StopRequested, clear_stop

STAGES = {
    "pretrain": "pscl_hpc.pretraining:pretrain",
    "finetune": "pscl_hpc.segmentation:finetune",
}
"""The function of each stage, ``module:function``; it takes the configuration."""


@dataclass(frozen=True)
class StageJob:
    """Begins or continues the run in a folder."""

    run: str
    """Absolute path of the run folder, which holds the resolved configuration."""
    entry: str
    """``module:function`` of the stage."""
    files: str
    """Absolute path of the folder of the job's own files."""
    nodes: int = 1
    tasks_per_node: int = 1
    gpus: bool = False
    """Whether each task has a GPU."""
    stage: str | None = None
    """Folder on the node's own disk from which the archive is read."""
    source: str = ""
    """Hash of the code that was submitted; empty accepts any."""
    commit: str = ""

    def __call__(self) -> None:
        """Run the stage; a failure ends the process with the exit code of the console command."""
        world = World.find(submitit.JobEnvironment())
        print(world.greeting(), flush=True)
        clear_stop()
        with listen() as requeue:
            try:
                self._prepare(world)
                config = load_config(Path(self.run) / "config.yaml").model_copy(update={"run": self.run})
                if self.stage is not None:
                    stage_archive(Path(config.data.archive), Path(self.stage))
                self._work(config)
            except StopRequested as stop:
                self._end_of_stop(stop.reason, world, requeue)
            except (UserError, JobError) as error:
                self._record(str(error))
                if isinstance(error, UserError):
                    self._say(world, REFUSED)
                _leave(f"error: {error}", EXIT_INPUT if isinstance(error, UserError) else EXIT_FAILED)
            except Exception as error:
                self._record(f"{type(error).__name__}: {error}")
                raise

    def checkpoint(self) -> DelayedSubmission:
        """What submitit runs after a preemption or a time limit: the same again."""
        return DelayedSubmission(replace(self))

    def _prepare(self, world: World) -> None:
        """Compare what is here with what was asked for."""
        check_source(self.source, self.commit)
        world.check(self.nodes, self.tasks_per_node)
        if self.gpus:
            _check_gpu(world)
        world.export(self.tasks_per_node)
        if world.rank == 0:
            failures = Path(self.files) / f"{world.job}.failures"
            keep_last_end(RunFolder.load(self.run), failures, world.restart - 1)

    def _work(self, config: Config) -> None:
        module, _, function = self.entry.partition(":")
        getattr(importlib.import_module(module), function)(config)

    def _end_of_stop(self, reason: str, world: World, requeue: Callable[[int, Any], None]) -> NoReturn:
        """After all ranks have saved and stopped."""
        slurm = world_is_slurm()
        if reason.startswith(CANCELLED):
            self._say(world, STOPPED)
            _leave("stopped by request", EXIT_STOPPED)
        if (not slurm and not reason.startswith(NOTICE)) or (slurm and slurm_ends_it()):
            _leave(f"stopped: {reason}", EXIT_TERMINATED)
        if world.rank:
            _leave(f"stopped: {reason}; rank 0 requeues the job", 0)
        self._say(world, REQUEUE)
        # A file that a killed attempt left half-written would stop submitit here.
        for left in Path(self.files).glob(f"{world.job}_*.save_tmp"):
            left.unlink(missing_ok=True)
        try:
            # On Slurm this ends in `scontrol requeue`; where that is not to be had, in a container, the batch script
            # does it.
            with contextlib.suppress(OSError):
                requeue(signal.SIGUSR2, None)
        except UncompletedJobError as error:
            self._say(world, REFUSED)
            _leave(f"error: {error}", EXIT_FAILED)
        _leave(f"stopped: {reason}", EXIT_FAILED)

    def _say(self, world: World, what: str) -> None:
        """Leave word for the batch script of this start of the job."""
        write_text(Path(self.files) / f"{world.job}.{world.restart}.end", what + "\n")

    def _record(self, reason: str) -> None:
        """Keep the reason of a failure that came before the run had begun; nothing beside somebody at work there."""
        folder = RunFolder.load(self.run)
        if folder.record.get("status") == "queued" and not is_locked(folder.path):
            folder.update(status="failed", error=reason)


def keep_last_end(folder: RunFolder, failures: Path | None, restart: int | None = None) -> None:
    """Note in the record of the newest attempt how it ended; what comes next would hide it.

    Args:
        folder: the run.
        failures: what the batch script of its job noted; None without a job.
        restart: the start of the job that the attempt belongs to; None is the last one noted.
    """
    folder.keep_last_end(_last_failure(failures, restart) if failures else "")


def world_is_slurm() -> bool:
    """Whether this process is a task of Slurm."""
    return bool(submitit.JobEnvironment().cluster == "slurm")


def _last_failure(path: Path, restart: int | None) -> str:
    """How the tasks of a start of the job ended, from what the batch script noted; empty when it did not."""
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return ""
    codes = [int(words[1]) for words in lines if len(words) == 2 and restart in (None, int(words[0]))]
    if not codes:
        return ""
    killed = f", killed by signal {codes[-1] - 128}" if codes[-1] > 128 else ""
    return f"a rank ended with exit code {codes[-1]}{killed}"


def _check_gpu(world: World) -> None:
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            f"rank {world.rank} on {world.node}: a GPU for each task was asked for, but torch finds none; check the "
            "driver, torch's build and the profile's setup"
        )


def _leave(sentence: str, code: int) -> NoReturn:
    # SystemExit passes through submitit, which would otherwise pickle and print a traceback.
    print(sentence, file=sys.stderr, flush=True)
    raise SystemExit(code) from None
