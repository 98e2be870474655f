"""``pscl-hpc plan``."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pscl_hpc.cli.options import JSON, OVERRIDES, print_json
from pscl_hpc.errors import UserError

if TYPE_CHECKING:
    from pscl_hpc.planning import Prediction, Rates
    from pscl_hpc.pretraining.config import PretrainConfig

GB = 1e9
SWEEP = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("plan")(plan)


def plan(
    config: Annotated[Path, typer.Option("--config", help="Pretraining configuration.")],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    rates: Annotated[
        Path, typer.Option(help="File of rates, measured on one device of the same model.")
    ] = Path("rates.json"),
    measure: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Measure the rates of this device, write them to FILE and exit."),
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="Numbers of images to measure with; 2,4,8 by default.")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes.")] = 1,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="GPUs (or CPU ranks) per node; 8 by default.")
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Unlabelled images per step, all GPUs together; batch_size by default."),
    ] = None,
    intra: Annotated[
        float | None,
        typer.Option(min=0.001, help="Bandwidth of one GPU to the others of its node, GB/s; 300 by default."),
    ] = None,
    inter: Annotated[
        float | None,
        typer.Option(min=0.001, help="Bandwidth of one node to the others, GB/s; 50 by default."),
    ] = None,
    intra_us: Annotated[
        float | None,
        typer.Option(min=0.0, max=1e9, help="Latency of a hop inside a node, microseconds; 10 by default."),
    ] = None,
    inter_us: Annotated[
        float | None,
        typer.Option(min=0.0, max=1e9, help="Latency of a hop between nodes, microseconds; 25 by default."),
    ] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Predict step time, memory and scaling of a pretraining on more GPUs than are available.

    Measure the rates once on one device of the same model (--measure), and state bandwidths and latencies of the
    cluster. The first line is the prediction for the GPUs given; the table is for other numbers of GPUs with the same
    number of images on each. The assumptions follow, with their sources. docs/scaling.md describes the model and how
    far it was validated.

    **Examples**

    `pscl-hpc plan --config my.yaml --measure rates.json`

    `pscl-hpc plan --config my.yaml --rates rates.json --nodes 16 --gpus 8 --batch 8192 --intra 300 --inter 50`
    """
    from pscl_hpc.config import load_config
    from pscl_hpc.pretraining.config import PretrainConfig

    if images is not None and measure is None:
        raise UserError("--images needs --measure FILE; leave --images out or add --measure")
    loaded = load_config(config, overrides or (), kind="pretrain")
    assert isinstance(loaded, PretrainConfig)
    if measure is not None:
        _measure(loaded, measure, images, as_json)
        return
    from pscl_hpc.planning import Links, assumptions, difference, load_rates, predict

    found = load_rates(rates)
    stated = {
        "per_node": gpus,
        "intra_bandwidth": None if intra is None else intra * GB,
        "inter_bandwidth": None if inter is None else inter * GB,
        "intra_latency": None if intra_us is None else intra_us * 1e-6,
        "inter_latency": None if inter_us is None else inter_us * 1e-6,
    }
    given = {key: value for key, value in stated.items() if value is not None}
    links = Links(**given)  # type: ignore[arg-type]
    ranks = nodes * links.per_node
    if other := difference(found, loaded) or _other_references(found, loaded, ranks):
        raise UserError(
            f"{rates}: was measured with {other}; measure again with the same keys: "
            f"'pscl-hpc plan --config {config} --measure FILE'"
        )
    total = batch or loaded.batch_size
    exact = loaded.accumulate == "exact"
    multiple = ranks * (loaded.part_size if exact else loaded.passes)
    if total % multiple:
        passes = f" in {loaded.passes} passes" if loaded.passes > 1 else ""
        passes = f" in parts of {loaded.part_size} images" if exact else passes
        raise UserError(f"--batch {total} cannot be divided equally among {ranks} GPUs{passes}; use a multiple of "
                        f"{multiple}, for example {-(-total // multiple) * multiple}")  # fmt: skip
    each = total / ranks
    asked, *sweep = (
        predict(
            found,
            links,
            count,
            each,
            accumulate=loaded.passes,
            parts=int(each) // loaded.part_size if exact else 1,
            synchronised=loaded.runtime.sync_batchnorm,
        )
        for count in (ranks, *SWEEP)
    )
    if as_json:
        lines = [_values(line) for line in (asked, *sweep)]
        known = {"device": found.device, "references": found.references}
        rests = [dataclasses.asdict(each) for each in assumptions(found, links, given)]
        print_json({**known, "asked": lines[0], "sweep": lines[1:], "assumptions": rests})
        return
    typer.echo(
        f"{total} images per step on {ranks} x {found.device} ({nodes} node{'s' if nodes > 1 else ''}): "
        f"{asked.step:.4g} s per step, {asked.images_per_second:.4g} images/s, "
        f"{asked.memory / GB:.3g} GB per GPU, efficiency {asked.efficiency:.0%}"
    )
    _table(sweep, each, found.references)
    typer.echo("\nThe prediction rests on:")
    for rest in assumptions(found, links, given):
        typer.echo(f"  {rest.name}: {rest.value} ({rest.source})")


def _other_references(rates: Rates, config: PretrainConfig, ranks: int) -> str:
    """The number of references in words, where it fits the rates neither per GPU nor for all GPUs; else empty."""
    from pscl_hpc.methods import ReferencedMethodConfig

    here = config.method.reference.per_batch if isinstance(config.method, ReferencedMethodConfig) else 0
    if config.accumulate == "exact":
        each = here // config.parts
        return "" if each == rates.references else f"{rates.references} references in a part, not {each}"
    if here in (rates.references, ranks * rates.references):
        return ""
    return f"{rates.references} references on one GPU, not {here / ranks:g} or {here}"


def _measure(config: PretrainConfig, path: Path, images: str | None, as_json: bool) -> None:
    from pscl_hpc.planning import load_rates, measure_rates, save_rates

    parts = (images or "2,4,8").split(",")
    numbers = {int(part) for part in parts if part.strip().isdecimal()}
    if not all(part.strip().isdecimal() for part in parts) or len(numbers) < 2 or min(numbers) < 2:
        raise UserError(
            f"--images is '{images}'; give two or more different numbers above 1, for example 2,4,8"
        )
    if not os.access(path.parent, os.W_OK | os.X_OK) or path.is_dir():
        raise UserError(
            f"--measure {path}: cannot be written; name a file in a folder that exists and is writable"
        )
    if path.exists():
        try:
            load_rates(path)
        except UserError:
            raise UserError(
                f"--measure {path}: exists and is not a file of measured rates; name another file"
            ) from None
    rates = measure_rates(config, sorted(numbers))
    save_rates(path, rates)
    disturbed = rates.measured.get("disturbed")
    if disturbed:
        typer.echo(f"warning: the machine was busy: {disturbed}; measure again on an idle one", err=True)
    if as_json:
        each = {"step_per_image": rates.step_per_image, "memory_per_image": rates.memory_per_image}
        known = {"rates": str(path), "device": rates.device, "disturbed": disturbed or ""}
        print_json({**known, **each})
        return
    typer.echo(
        f"{rates.device}: {1000 * rates.step_per_image:.4g} ms and {rates.memory_per_image / GB:.3g} GB per image",
        err=True,
    )
    typer.echo(path)


def _values(line: Prediction) -> dict[str, float]:
    return {**dataclasses.asdict(line), "step": line.step, "images_per_second": line.images_per_second}


def _table(sweep: list[Prediction], images: float, references: int) -> None:
    beside = f" and {references} references" if references else ""
    typer.echo(f"\n{images:g} images{beside} per GPU; seconds per step:")
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
