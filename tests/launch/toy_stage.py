"""A toy stage for the tests of jobs: it writes a run folder as the real stages do, but counts instead of training.

The run's name selects its behaviour. Jobs import this file by its name.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch

from pscl_hpc.errors import JobError, UserError
from pscl_hpc.pretraining.config import PretrainConfig
from pscl_hpc.runs import RunFolder
from pscl_hpc.training import StopRequested, stop_reason


def train(config: PretrainConfig) -> None:
    """Count to ``schedule.steps``, 10 ms per step."""
    if config.name == "ranks":
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
        print(*(f"{name}={os.environ[name]}" for name in names), flush=True)
        if os.environ["RANK"] != "0":
            return
    if config.name == "refused":
        raise UserError("the archive is wrong; fix it")
    with RunFolder.start(config, torch.device("cpu")) as folder:
        state = folder.checkpoints.load_latest()
        first = int(state["step"]) if state else 0
        print(f"beginning after step {first}", flush=True)
        log = folder.metrics_log()
        log.rewind(first)
        for step in range(first + 1, config.schedule.steps + 1):
            time.sleep(0.01)
            log.write(step, {"loss": 1.0 / step, "images_per_second": 100.0})
            if step % config.checkpoint.every_steps == 0:
                folder.checkpoints.save(step, {"sum": torch.tensor(float(step))})
            if config.name == "nan" and step == 3:
                raise JobError("the loss is not finite at step 3")
            if config.name == "bug" and step == 3:
                raise ZeroDivisionError("a slip of the programmer")
            if config.name == "dies" and step == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            if config.name == "dies-once" and step == 12 and not first:
                os.kill(os.getpid(), signal.SIGKILL)
            if config.name == "preempted" and step == 15 and not first:
                os.kill(os.getpid(), signal.SIGUSR2)
            if stop_reason() and config.name != "ignores-stop":
                folder.checkpoints.save(step, {"sum": torch.tensor(float(step))})
                folder.stop(str(stop_reason()))
                raise StopRequested(str(stop_reason()))
        print("the end", file=sys.stderr, flush=True)


def train_and_score(config: PretrainConfig) -> None:
    """The run and its scores, as in the jobs of a study; scoring needs a file ``model`` in the folder."""
    folder = Path(config.run)
    if not RunFolder.load(folder).done:
        train(config)
    if not (folder / "model").exists():
        raise JobError("there is no model to score")
    (folder / "scores").touch()
