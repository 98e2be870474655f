"""``measure``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pscl_hpc.cli import inference, ingest
from pscl_hpc.cli.inference import Tta
from pscl_hpc.cli.options import JSON, print_json
from pscl_hpc.errors import EXIT_SKIPPED, UserError


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("measure")(measure_command)


def measure_command(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="Folder of a fine-tuned run; or an archive, whose masks are measured."
        ),
    ],
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE",
            help="Image files or folders; with an archive, image ids. Default: the images of the collection that the run "
            "was trained on; of an archive all annotated images.",
        ),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of masks of the image files, to compare with: shows the error of the fractions.",
        ),
    ] = None,
    mask_values: Annotated[
        str,
        typer.Option(
            metavar="VALUE=CLASS,...", help="With --masks: classes of the values or colours in them."
        ),
    ] = "",
    scribbles: Annotated[
        bool, typer.Option("--scribbles", help="With --masks: 0 is not annotated, 1 is the first class.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Output folder. Default: RUN/measurements.")] = None,
    archive: Annotated[Path | None, typer.Option(help="Read the images from this archive.")] = None,
    dataset: Annotated[str, typer.Option(help="Of an archive: the collection, if several have masks.")] = "",
    split: Annotated[
        list[str] | None, typer.Option("--split", help="Only images of this split; repeat for several.")
    ] = None,
    phase: Annotated[
        list[str] | None,
        typer.Option(
            "--phase",
            help="Class whose particles are measured; repeat for several. Default: all but the background.",
        ),
    ] = None,
    boundary: Annotated[
        str, typer.Option(help="Class that is the grain boundary: measure the grain size.")
    ] = "",
    smallest: Annotated[int, typer.Option(help="Smallest particle in pixels.")] = 10,
    um_per_pixel: Annotated[
        float | None, typer.Option(help="Scale of all images. Default: as in the archive or the files.")
    ] = None,
    validation: Annotated[
        str,
        typer.Option(
            help="Split of the run's archive with the errors of the model, which correct the fractions; 'none' for no "
            "correction. Default: the validation images, if there are any."
        ),
    ] = "",
    percentiles: Annotated[str | None, inference.PERCENTILES] = None,
    colour: Annotated[str | None, inference.COLOUR] = None,
    crop_bottom: Annotated[str | None, inference.CROP_BOTTOM] = None,
    page: Annotated[str | None, inference.PAGE] = None,
    intensity_range: Annotated[str | None, inference.RANGE] = None,
    tta: Annotated[Tta | None, inference.TTA] = None,
    adapt: Annotated[float | None, inference.ADAPT] = None,
    correct_shading: Annotated[bool | None, inference.CORRECT_SHADING] = None,
    unweighted: Annotated[bool | None, inference.UNWEIGHTED] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Measure phase fractions, particles, spacing and grain size, with 95% intervals from image to image.

    Segments the images, and writes results.csv (the set), images.csv, particles.csv, measurements.json and a page. Lengths
    are in micrometres if the scale of all images is known. docs/numbers.md states every rule.

    **Examples**

    `pscl-hpc measure runs/steel-0007 micrographs/`

    `pscl-hpc measure runs/steel-0007 --split test --phase carbide`

    `pscl-hpc measure runs/steel-0007 micrographs/ --masks painted/`

    `pscl-hpc measure alloys.h5 --dataset steel --split test --out steel-masks`

    `pscl-hpc measure runs/grains micrographs/ --boundary boundary --um-per-pixel 0.25`
    """
    from pscl_hpc.archive import is_archive
    from pscl_hpc.metallography.measure import Wanted, measure, measure_masks
    from pscl_hpc.report import write_report

    wanted = Wanted(tuple(phase or ()), boundary, smallest, um_per_pixel)
    if masks is None and (mask_values or scribbles):
        raise UserError("--mask-values and --scribbles are for --masks; name the folder of the masks")
    if is_archive(run):
        given = {
            "--masks": masks,
            "--archive": archive,
            "--validation": validation or None,
            "--tta": tta,
            "--adapt": adapt,
            "--correct-shading": correct_shading,
            "--unweighted": unweighted,
        }
        if wrong := [name for name, value in given.items() if value is not None]:
            raise UserError(
                f"{run} is an archive, whose masks are measured; leave {wrong[0]} out, or name a run"
            )
        if out is None:
            raise UserError(f"{run} is an archive; name a folder for the results with --out")
        measured = measure_masks(
            run, images or (), out=out, wanted=wanted, dataset=dataset, splits=split or (), progress=not as_json
        )  # fmt: skip
    else:
        if dataset:
            raise UserError("--dataset is for an archive; name images, or choose some with --split")
        measured = measure(
            run,
            images or (),
            wanted=wanted,
            out=out,
            archive=archive,
            splits=split or (),
            validation=validation,
            masks=masks,
            mask_values=ingest.values_of_masks(mask_values),
            scribbles=scribbles,
            tta=tta,
            adapt=adapt,
            correct_shading=correct_shading,
            unweighted=unweighted,
            progress=not as_json,
            **inference.file_options(percentiles, colour, crop_bottom, page, intensity_range),
        )
    report = write_report([measured.folder])
    record = measured.record
    for warning in record.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for source, reason in record.skipped:
        print(f"skipped {source}: {reason}", file=sys.stderr)
    if as_json:
        print_json(record.model_dump(mode="json"))
    else:
        for line in record.lines():
            typer.echo(line)
        typer.echo(report.path)
    if record.skipped:
        raise typer.Exit(EXIT_SKIPPED)
