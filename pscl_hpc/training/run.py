"""A run from its configuration: ranks, archive, task, folder, what it decides at its start, and the loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from pscl_hpc.archive import Archive
from pscl_hpc.config import TrainingConfig
from pscl_hpc.errors import UserError
from pscl_hpc.runs import RunFolder
from pscl_hpc.training.decisions import PRECISION, TRIAL, decide, keep_threads
from pscl_hpc.training.device import keep_freed_memory
from pscl_hpc.training.joining import join_ranks
from pscl_hpc.training.loop import Loop
from pscl_hpc.training.ranks import Ranks
from pscl_hpc.training.task import Task

ConfigT = TypeVar("ConfigT", bound=TrainingConfig)


def train(
    config: ConfigT, build: Callable[[ConfigT, Archive, Ranks], Task[Any]], *, progress: bool = False
) -> RunFolder:
    """Run or resume a task, together with the other ranks that the environment describes.

    Nothing is written before all ranks have checked their input. A finished run is returned as it is.

    Args:
        config: The run.
        build: Makes the task.
        progress: Show a progress bar when the output is a terminal.

    Raises:
        UserError: wrong input, or an archive that has changed since the run began.
        JobError: loss or gradient is not finite, a checkpoint cannot be written, a rank is lost, or another attempt has
            taken over the run.
        StopRequested: the training stopped on request; its state is saved.
    """
    began = time.monotonic()
    with join_ranks(config.runtime) as ranks, Archive(config.data.archive) as archive:
        if ranks.device.type == "cpu":
            keep_freed_memory()

        def made(settings: ConfigT) -> Task[Any]:
            return build(settings, archive, ranks)

        undecided = not config.schedule.steps or config.runtime.precision == "auto"
        # The input is checked before anything is written.
        task = made(config.with_decisions({PRECISION: "fp32", **TRIAL}) if undecided else config)
        folder, fingerprint = _open_folder(config, archive, ranks)
        if not folder.done:
            with folder, ranks.watch():
                check_unchanged(archive, folder, fingerprint)
                keep_threads(config, folder, ranks)
                if undecided:
                    del task
                    decide(config, folder, ranks, made, began)
                    task = made(config.with_decisions(folder.decided))
                Loop(task, folder, ranks).run(progress=progress)
    return folder


def check_unchanged(archive: Archive, folder: RunFolder, fingerprint: str) -> None:
    """Check that an archive has the fingerprint with which a run began.

    Raises:
        UserError: it has another one.
    """
    if archive.fingerprint != fingerprint:
        raise UserError(
            f"{archive.path}: has changed since the run {folder.path} began; restore it, or start a new run with run=..."
        )


def _open_folder(config: TrainingConfig, archive: Archive, ranks: Ranks) -> tuple[RunFolder, str]:
    """The run folder, locked by rank 0, and the fingerprint of the archive that the run began with."""
    opened: list[RunFolder] = []
    # Nothing is written before all ranks have checked their input.
    ranks.barrier()

    def start() -> dict[str, Any]:
        folder = RunFolder.start(config, ranks.device, ranks.nodes if ranks.world > 1 else ())
        opened.append(folder)
        began_with = folder.record.get("archive", archive.fingerprint)
        return {
            "path": str(folder.path),
            "done": folder.done,
            "archive": began_with,
            "decided": folder.decided,
        }

    answer = ranks.from_first(start)
    if opened:
        return opened[0], answer["archive"]
    folder = RunFolder.follow(answer["path"], config, done=answer["done"], decided=answer["decided"])
    return folder, answer["archive"]
