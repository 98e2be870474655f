"""``replay``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from pscl_hpc.cli.options import JSON, print_json
from pscl_hpc.errors import UserError


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("replay")(replay_command)


def replay_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run that failed.")],
    device: Annotated[
        str | None, typer.Option(help="auto, cpu or cuda. Default: that of the run's configuration.")
    ] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Repeat the step whose loss or gradient was not finite, and name the place of the first such value.

    The run saved its weights, images and random state in RUN/failure, and is not changed. The images are read again from
    the archive, those of all ranks in this process.

    **Example**

    `pscl-hpc replay runs/pscl-simclr --device cpu`
    """
    from pscl_hpc.pretraining import PretrainTask
    from pscl_hpc.runs import RunFolder
    from pscl_hpc.segmentation.finetune import FinetuneTask
    from pscl_hpc.training.replay import replay

    if device not in (None, "auto", "cpu", "cuda"):
        raise UserError(f"--device {device}: choose auto, cpu or cuda")
    folder = RunFolder.load(run)
    tasks: dict[str, Any] = {"pretrain": PretrainTask, "finetune": FinetuneTask}
    kind = str(folder.record.get("kind"))
    if kind not in tasks:
        raise UserError(
            f"{run}: is a run of kind '{kind}', which has no steps to replay; name a pretraining or fine-tuning"
        )
    found = replay(folder, tasks[kind], device)
    if as_json:
        # JSON has no NaN.
        terms = {
            name: value if abs(value) < float("inf") else str(value) for name, value in found.terms.items()
        }
        print_json({**dataclasses.asdict(found), "terms": terms, "verdict": found.verdict})
        return
    for line in found.lines():
        typer.echo(line)
