"""What a job does: the stage of a run folder, as the console command would do it.

The callable holds nothing but the run folder's path, for a job that is started again after a node failure is
started from the pickle it was submitted with: where to go on is found in the folder.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from submitit.helpers import DelayedSubmission

from pscl_hpc.config import load_config
from pscl_hpc.errors import EXIT_FAILED, EXIT_INPUT, JobError, UserError
from pscl_hpc.runs import RunFolder

STAGES = {
    "pretrain": "pscl_hpc.pretraining:pretrain",
    "finetune": "pscl_hpc.segmentation:finetune",
}
"""The function of each stage, ``module:function``; it takes the configuration."""

EXIT_STOPPED = 130
EXIT_TERMINATED = 143


@dataclass(frozen=True)
class StageJob:
    """Begins or continues the run in a folder."""

    run: str
    """Absolute path of the run folder, which holds the resolved configuration."""
    entry: str
    """``module:function`` of the stage."""

    def __call__(self) -> None:
        """Run the stage; a failure ends the process with the exit code of the console command."""
        _accept_stop_signals()
        try:
            config = load_config(Path(self.run) / "config.yaml").model_copy(update={"run": self.run})
            module, _, function = self.entry.partition(":")
            getattr(importlib.import_module(module), function)(config)
        except (UserError, JobError) as error:
            self._record(str(error))
            _leave(f"error: {error}", EXIT_INPUT if isinstance(error, UserError) else EXIT_FAILED)
        except KeyboardInterrupt:
            _leave("stopped by request", EXIT_STOPPED)
        except Exception as error:
            self._record(f"{type(error).__name__}: {error}")
            raise

    def checkpoint(self) -> DelayedSubmission:
        """What submitit runs after a preemption or a time limit: the same again."""
        return DelayedSubmission(StageJob(self.run, self.entry))

    def _record(self, reason: str) -> None:
        """Keep the reason of a failure that came before the run had begun."""
        folder = RunFolder.load(self.run)
        if folder.record.get("status") == "queued":
            folder.update(status="failed", error=reason)


def _accept_stop_signals() -> None:
    # A job submitted from a background shell inherits an ignored SIGINT, by which `jobs cancel` asks it to stop.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # On Slurm SIGTERM announces a preemption too, where submitit has to live on to requeue the job.
    if os.environ.get("SUBMITIT_EXECUTOR") == "local":
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(EXIT_TERMINATED))


def _leave(sentence: str, code: int) -> NoReturn:
    # SystemExit passes through submitit, which would otherwise pickle and print a traceback.
    print(sentence, file=sys.stderr, flush=True)
    raise SystemExit(code) from None
