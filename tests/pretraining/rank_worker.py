"""Trains the cases of ``rank_cases`` for three steps in float64: in this process, or as one of the ranks that the
environment describes: ``rank_worker.py ARCHIVE FOLDER CASE...`` writes ``FOLDER/<rank>.pt``."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pscl_hpc.archive import Archive
from pscl_hpc.config import RuntimeConfig
from pscl_hpc.pretraining import PretrainTask
from pscl_hpc.pretraining import task as task_module
from pscl_hpc.pretraining.data import make_views
from pscl_hpc.runs import RunFolder
from pscl_hpc.training import Loop, Ranks, join_ranks
from tests.helpers import small_config
from tests.pretraining.rank_cases import CASES

STEPS = 3


def train(archive: Path, name: str, ranks: Ranks) -> dict[str, Any]:
    """Losses, gradients of every step, and the state after the last."""

    def doubled(*arguments: Any) -> Any:
        views = make_views(*arguments)
        return replace(views, query=views.query.double(), key=views.key.double())

    torch.set_default_dtype(torch.float64)
    task_module.make_views = doubled
    try:
        config = small_config(archive, Path("unused"), **{"batch_size": 4, **CASES[name]})
        with Archive(archive) as opened:
            task = PretrainTask(config, opened, ranks)
            loop = Loop(task, RunFolder.follow("unused", config, done=False), ranks)
            losses, gradients = [], []
            for step in range(STEPS):
                numbers = range(step * task.accumulate, (step + 1) * task.accumulate)
                losses.append(loop.step([task.dataset[number] for number in numbers], measure=True)["loss"])
                gradients.append(
                    {key: p.grad.clone() for key, p in task.module.named_parameters() if p.grad is not None}
                )
        return {"losses": losses, "gradients": gradients, "state": dict(task.module.state_dict())}
    finally:
        torch.set_default_dtype(torch.float32)
        task_module.make_views = make_views


def main(archive: str, folder: str, cases: list[str]) -> None:
    with join_ranks(RuntimeConfig(device="cpu", threads=1, collective_timeout_s=60)) as ranks:
        results = {name: train(Path(archive), name, ranks) for name in cases}
        torch.save(results, f"{folder}/{ranks.rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
