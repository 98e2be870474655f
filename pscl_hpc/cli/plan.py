"""``pscl-hpc plan``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pscl_hpc.config import PretrainConfig
    from pscl_hpc.planning import Prediction

GB = 1e9
SWEEP = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("plan")(plan)


def plan(
    config: Annotated[Path, typer.Option("--config", help="Pretraining configuration.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Values that replace those of the file."),
    ] = None,
    rates: Annotated[
        Path, typer.Option(help="Rates measured on one device of the kind to be planned for.")
    ] = Path("rates.json"),
    measure: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Measure this device's rates into FILE, and end.")
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="Images at which to measure, for example 2,4,8 (the default).")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes.")] = 1,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs (or CPU ranks) per node.")] = 8,
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Unlabelled images per step over all GPUs; batch_size by default."),
    ] = None,
    intra: Annotated[
        float, typer.Option(min=0.001, help="GB/s of one GPU to the others of its node.")
    ] = 300.0,
    inter: Annotated[float, typer.Option(min=0.001, help="GB/s of one node to the others.")] = 50.0,
    intra_us: Annotated[float, typer.Option(min=0.0, help="Latency of a hop inside a node, in us.")] = 10.0,
    inter_us: Annotated[float, typer.Option(min=0.0, help="Latency of a hop between nodes, in us.")] = 25.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON value instead of text.")] = False,
) -> None:
    """Predict step time, memory and scaling of a pretraining on more GPUs than there are at hand.

    Rates are measured once on one device of the kind in question; bandwidths and latencies of the cluster are what you
    state. The first line is what was asked for, the table keeps its images per GPU and changes the number of GPUs.
    docs/scaling.md says what the model holds and how far it was checked.

    Examples:

        pscl-hpc plan --config my.yaml --measure rates.json

        pscl-hpc plan --config my.yaml --rates rates.json --nodes 16 --gpus 8 --batch 8192 --intra 300 --inter 50
    """
    from pscl_hpc.config import PretrainConfig, load_config

    loaded = load_config(config, overrides or (), kind="pretrain")
    assert isinstance(loaded, PretrainConfig)
    if measure is not None:
        _measure(loaded, measure, images)
        return
    from pscl_hpc.errors import UserError
    from pscl_hpc.planning import Links, load_rates, predict

    found = load_rates(rates)
    for name, here, there in (
        ("method.name", loaded.method.name, found.method),
        ("views.size", list(loaded.views.size), list(found.size)),
        ("runtime.precision", loaded.runtime.precision, found.precision),
    ):
        if here != there:
            raise UserError(
                f"{rates}: was measured with {name} {there}, but {config} has {here}; measure again with "
                f"'pscl-hpc plan --config {config} --measure FILE'"
            )
    ranks = nodes * gpus
    total = batch or loaded.batch_size
    if total % ranks:
        raise UserError(f"--batch {total} cannot be shared by {ranks} GPUs; use a multiple, for example "
                        f"{-(-total // ranks) * ranks}")  # fmt: skip
    links = Links(gpus, intra * GB, inter * GB, intra_us * 1e-6, inter_us * 1e-6)
    each = total / ranks
    asked = predict(found, links, ranks, each)
    sweep = [predict(found, links, count, each) for count in SWEEP]
    if as_json:
        lines = [_values(line) for line in (asked, *sweep)]
        typer.echo(json.dumps({"device": found.device, "asked": lines[0], "sweep": lines[1:]}, indent=2))
        return
    typer.echo(
        f"{total} images per step on {ranks} x {found.device} ({nodes} node{'s' if nodes > 1 else ''}): "
        f"{asked.step:.4g} s per step, {asked.images_per_second:.4g} images/s, "
        f"{asked.memory / GB:.3g} GB per GPU, efficiency {asked.efficiency:.0%}"
    )
    _table(sweep, each)


def _measure(config: PretrainConfig, path: Path, images: str | None) -> None:
    from pscl_hpc.errors import UserError
    from pscl_hpc.planning import measure_rates, save_rates

    parts = (images or "2,4,8").split(",")
    if not all(part.strip().isdigit() and int(part) > 1 for part in parts) or len(set(parts)) < 2:
        raise UserError(f"--images '{images}': write two or more numbers above 1, for example 2,4,8")
    rates = measure_rates(config, sorted({int(part) for part in parts}))
    save_rates(path, rates)
    typer.echo(
        f"{rates.device}: {1000 * rates.step_per_image:.4g} ms and {rates.memory_per_image / GB:.3g} GB per image",
        err=True,
    )
    typer.echo(path)


def _values(line: Prediction) -> dict[str, float]:
    import dataclasses

    return {**dataclasses.asdict(line), "step": line.step, "images_per_second": line.images_per_second}


def _table(sweep: list[Prediction], images: float) -> None:
    typer.echo(f"\n{images:g} images per GPU; seconds per step:")
    head = ("GPUs", "nodes", "batch", "network", "loss", "gather", "gradients", "norm", "step", "images/s",
            "GB per GPU", "efficiency")  # fmt: skip
    rows: list[tuple[str, ...]] = [head]
    for line in sweep:
        seconds = (line.compute, line.loss, line.gather, line.reduce, line.normalise, line.step)
        rows.append(
            (
                str(line.ranks),
                str(line.nodes),
                f"{line.ranks * line.images:g}",
                *(f"{value:.3g}" for value in seconds),
                f"{line.images_per_second:.4g}",
                f"{line.memory / GB:.3g}",
                f"{line.efficiency:.0%}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
