"""``pretrain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pscl_hpc.cli.options import JSON, OVERRIDES, print_json


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    from pscl_hpc.methods import METHODS, display_name

    methods = ", ".join(f"{name} ({display_name(name)})" for name in METHODS.names)
    epilog = f"Methods (method.name): {methods}. Keys: pscl-hpc config pretrain --method NAME"
    app.command("pretrain", epilog=epilog)(pretrain_command)


def pretrain_command(
    config: Annotated[Path, typer.Option("--config", help="Configuration file; see configs/pretrain/.")],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Pretrain a network on unlabelled micrographs.

    Prints the run folder. Ctrl-C saves a checkpoint after the current step and stops; a second Ctrl-C stops at once.
    To resume an interrupted run, repeat the command with its folder as run=...

    **Examples**

    `pscl-hpc pretrain --config configs/pretrain/pscl-simclr.yaml data.archive=alloys.h5
    method.reference.ids=[steel/0007]`

    `pscl-hpc pretrain --config configs/pretrain/simclr.yaml data.archive=alloys.h5 run=runs/simclr
    schedule.steps=5000`

    `torchrun --nproc-per-node 4 -m pscl_hpc.cli pretrain --config configs/pretrain/simclr.yaml
    data.archive=alloys.h5 batch_size=256`
    """
    from pscl_hpc.cli.signals import stop_after_step
    from pscl_hpc.config import load_config
    from pscl_hpc.pretraining import pretrain
    from pscl_hpc.pretraining.config import PretrainConfig
    from pscl_hpc.training import read_place

    loaded = load_config(config, overrides or (), kind="pretrain")
    assert isinstance(loaded, PretrainConfig)
    with stop_after_step():
        folder = pretrain(loaded, progress=not as_json)
    if not read_place().first:
        return
    if as_json:
        lines = folder.metrics()
        print_json({"run": str(folder.path), "last": lines[-1] if lines else None})
    else:
        typer.echo(folder.path)
