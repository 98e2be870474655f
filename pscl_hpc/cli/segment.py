"""``segment``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pscl_hpc.cli import ingest
from pscl_hpc.cli.options import JSON, print_json
from pscl_hpc.errors import EXIT_SKIPPED, UserError

if TYPE_CHECKING:
    from pscl_hpc.workflow import Request


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("segment")(segment_command)


def segment_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of micrographs.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Values that override those of the configuration of the training."
        ),
    ] = None,
    masks: Annotated[
        list[Path] | None,
        typer.Option("--mask", metavar="FILE", help="Mask of one of the images; repeatable."),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            "--image",
            help="The image of each mask, if their names do not tell: name, path or id; the ending may be left out.",
        ),
    ] = None,
    classes: Annotated[str, typer.Option(help="Class names in index order, separated by commas.")] = "",
    mask_values: Annotated[
        str, typer.Option(metavar="VALUE=CLASS,...", help="Classes of the values in the masks.")
    ] = "",
    scribbles: Annotated[
        bool, typer.Option("--scribbles", help="In the masks 0 is not annotated, 1 is the first class.")
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(help="Configuration of the training. Default: configs/finetune/default.yaml."),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.01, help="Time for training. Default: the number of steps of the recipe."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results. Default: runs/segment-FOLDER.")
    ] = None,
    phase: Annotated[
        list[str] | None, typer.Option("--phase", help="Class whose particles are measured; repeatable.")
    ] = None,
    boundary: Annotated[str, typer.Option(help="Class that is the grain boundary.")] = "",
    smallest: Annotated[int, typer.Option(help="Smallest particle in pixels.")] = 10,
    um_per_pixel: Annotated[float | None, typer.Option(help="Scale of all images.")] = None,
    percentiles: Annotated[str, typer.Option(help=ingest.PERCENTILES_HELP)] = "0.5,99.5",
    colour: Annotated[str, typer.Option(help=ingest.COLOUR_HELP)] = "keep",
    crop_bottom: Annotated[str, typer.Option(help=ingest.CROP_HELP)] = "0",
    page: Annotated[str, typer.Option(help=ingest.PAGE_HELP)] = "all",
    intensity_range: Annotated[str, typer.Option("--range", help=ingest.RANGE_HELP)] = "image",
    submit: Annotated[bool, typer.Option("--submit", help="Train and measure as a job.")] = False,
    cluster: Annotated[
        Literal["local", "slurm"] | None, typer.Option(help="With --submit: where; by default as 'submit'.")
    ] = None,
    profile: Annotated[str | None, typer.Option(help="With --submit: cluster profile.")] = None,
    partition: Annotated[str | None, typer.Option(help="With --submit: Slurm partition.")] = None,
    time: Annotated[str | None, typer.Option(help="With --submit: time limit.")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(min=0, help="With --submit: GPUs.")] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """From micrographs and one mask, or a few, to phase fractions: packs, trains, segments and measures all images.

    Writes archive.h5, the run model/, measurements/ with CSV files, and report.html. The page names the single commands
    that do the same, and each part can be continued by them. The same command resumes after an interruption.

    Without --mask it suggests the image to annotate, and writes a copy of it and an empty mask to paint.

    **Examples**

    `pscl-hpc segment micrographs`

    `pscl-hpc segment micrographs --mask painted/0007.png --classes matrix,carbide`

    `pscl-hpc segment micrographs --mask 0007_mask.png --mask-values 0=matrix,255=carbide --crop-bottom auto`

    `pscl-hpc segment micrographs --mask 0007.png --classes matrix,carbide --submit --time 1:00:00 --gpus-per-node 1`
    """
    from pscl_hpc.cli.signals import stop_in_training
    from pscl_hpc.workflow import Request, segment
    from pscl_hpc.workflow.submission import submit_segment

    request = Request(
        folder=str(folder.absolute()),
        masks=tuple(str(mask.absolute()) for mask in masks or ()),
        images=tuple(images or ()),
        classes=tuple(name.strip() for name in classes.split(",")) if classes else (),
        mask_values=ingest.values_of_masks(mask_values),
        scribbles=scribbles,
        percentiles=ingest.two_percentiles(percentiles),
        luma=ingest.luma(colour),
        crop_bottom=ingest.rows_to_crop(crop_bottom),
        page=ingest.page_number(page),
        common_range=ingest.common_range(intensity_range),
        config=str(config.absolute()) if config is not None else "",
        minutes=minutes,
        overrides=tuple(overrides or ()),
        phases=tuple(phase or ()),
        boundary=boundary,
        smallest=smallest,
        um_per_pixel=um_per_pixel,
    )
    target = out if out is not None else Path("runs") / f"segment-{folder.absolute().name}"

    said: set[str] = set()

    def say(text: str) -> None:
        said.add(text)
        print(text, file=sys.stderr, flush=True)

    wanted = {"--cluster": cluster, "--profile": profile, "--partition": partition, "--time": time,
              "--gpus-per-node": gpus_per_node}  # fmt: skip
    if not masks:
        _suggest(request, target, as_json)
        return
    if submit:
        sent = submit_segment(
            request, target, cluster=cluster, profile=profile, partition=partition, time=time,
            gpus_per_node=gpus_per_node, say=say,
        )  # fmt: skip
        if as_json:
            print_json({"folder": str(target), "run": str(sent.run), "job": sent.job.job})
        else:
            typer.echo(
                f"job {sent.job.job} ({sent.job.cluster}); follow it with: pscl-hpc jobs logs -f {sent.run}"
            )
            typer.echo(target)
        return
    if given := [name for name, value in wanted.items() if value is not None]:
        raise UserError(f"{given[0]} is for a job; add --submit, or leave it out")
    done = segment(request, target, say=say, progress=not as_json, training=stop_in_training)
    record = done.measured.record
    told = [f"warning: {warning}" for warning in record.warnings]
    told += [f"skipped {source}: {reason}" for source, reason in record.skipped]
    for text in told:
        if text not in said:  # packing told it before the training
            print(text, file=sys.stderr)
    if as_json:
        print_json({"folder": str(target), "page": str(done.page),
                               "results": [row.model_dump() for row in record.results]})  # fmt: skip
    else:
        for line in record.lines():
            typer.echo(line)
        typer.echo(done.page)
    if record.skipped:
        raise typer.Exit(EXIT_SKIPPED)


def _suggest(request: Request, target: Path, as_json: bool) -> None:
    from pscl_hpc.workflow import suggest_annotation

    found = suggest_annotation(request, target, progress=not as_json)
    if as_json:
        paths = {"id": found.id, "image": found.image, "template": found.template, "reason": found.reason}
        print_json({name: str(path) for name, path in paths.items()})
    else:
        for line in found.lines:
            typer.echo(line)
        typer.echo(f"{found.reason}: why this image")
        typer.echo(f"{found.image}: the image")
        typer.echo(
            f"{found.template}: paint this mask, a palette PNG, with the indices of your classes (0, 1, ...); pixels that "
            "stay 255 count as not annotated"
        )
        words = ["pscl-hpc", "segment", request.folder, "--mask", str(found.template), "--image", found.id]
        typer.echo(f"then: {shlex.join(words)} --out {shlex.quote(str(target))} --classes NAME,NAME,...")
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for source, reason in found.skipped:
        print(f"skipped {source}: {reason}", file=sys.stderr)
    if found.skipped:
        raise typer.Exit(EXIT_SKIPPED)
