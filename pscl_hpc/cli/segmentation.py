"""``finetune``, ``evaluate``, ``predict``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pscl_hpc.cli import ingest
from pscl_hpc.errors import EXIT_SKIPPED

_JSON = typer.Option("--json", help="Print one JSON object, for programs.")
_AS_TRAINED = "For files; default: as for the annotated images of the run."
_TTA = typer.Option(
    "--tta", help="Test-time augmentation: the mean over eight turns and reflections, eight times as long."
)
_ADAPT = typer.Option(
    "--adapt",
    metavar="SHARE",
    help="Share of each image's own statistics in batch normalisation, such as 0.1, for images of another exposure "
    "than those of the training.",
)
_RUN = typer.Argument(metavar="RUN", help="Folder of a finished fine-tuning run.")


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("finetune")(finetune_command)
    app.command("evaluate")(evaluate_command)
    app.command("predict")(predict_command)


def finetune_command(
    config: Annotated[Path, typer.Option("--config", help="Configuration file; see configs/finetune/.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Values that replace those of the file."),
    ] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Train a segmentation model on one annotated image (or a few).

    Prints the run folder. Ctrl-C stops after the step, with the state saved; a second one stops at once. A run that
    was interrupted goes on when the same command names its folder with run=...

    **Examples**

    `pscl-hpc finetune --config configs/finetune/default.yaml data.archive=alloys.h5 references=[steel/0007]`

    `pscl-hpc finetune --config configs/finetune/default.yaml data.archive=alloys.h5 references=[steel/0007]
    pretrained=runs/pretrain-1 run=runs/steel-0007`
    """
    from pscl_hpc.cli.stopping import ends_when_asked
    from pscl_hpc.config import FinetuneConfig, load_config
    from pscl_hpc.segmentation import finetune
    from pscl_hpc.training import read_place

    loaded = load_config(config, overrides or (), kind="finetune")
    assert isinstance(loaded, FinetuneConfig)
    with ends_when_asked():
        folder = finetune(loaded, progress=not as_json)
    if not read_place().first:
        return
    if as_json:
        _print_json({"run": str(folder.path), "best": folder.record.get("best")})
    else:
        best = folder.record.get("best", {})
        if best.get("mean_dice") is not None:
            typer.echo(
                f"best step {best['step']}: mean Dice {best['mean_dice']:.4f} on the validation images"
            )
        typer.echo(folder.path)


def evaluate_command(
    run: Annotated[Path, _RUN],
    split: Annotated[
        list[str] | None,
        typer.Option("--split", help="Split to score; repeat it for several. Default: all test splits."),
    ] = None,
    archive: Annotated[
        Path | None, typer.Option("--archive", help="Archive to score on, when not that of the training.")
    ] = None,
    tta: Annotated[bool, _TTA] = False,
    adapt: Annotated[float, _ADAPT] = 0.0,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Score a fine-tuned run: Dice per class pooled over the images, IoU, pixel accuracy.

    Writes evaluation.json and the predictions into the run folder and prints the file.

    **Examples**

    `pscl-hpc evaluate runs/steel-0007`

    `pscl-hpc evaluate runs/steel-0007 --split val --split test --json`
    """
    from pscl_hpc.segmentation import EVALUATION_FILE, evaluate

    content = evaluate(run, splits=split, archive=archive, tta=tta, adapt=adapt, progress=not as_json)
    if as_json:
        _print_json(content)
        return
    for name, scores in content["splits"].items():
        typer.echo(
            f"{name}: {scores['images']} images, mean Dice {_number(scores['mean_dice'])}, "
            f"mean IoU {_number(scores['mean_iou'])}, pixel accuracy {_number(scores['pixel_accuracy'])}"
        )
        for label, value in scores["dice"].items():
            typer.echo(f"  {_number(value)}  {label}")
    typer.echo(run / EVALUATION_FILE)


def predict_command(
    run: Annotated[Path, _RUN],
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE", help="Image files; with --archive image ids.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the pictures; RUN/predictions/files by default.")
    ] = None,
    archive: Annotated[
        Path | None, typer.Option("--archive", help="Take the images from this archive, by id.")
    ] = None,
    percentiles: Annotated[str | None, typer.Option(help=f"{ingest.PERCENTILES_HELP} {_AS_TRAINED}")] = None,
    colour: Annotated[str | None, typer.Option(help=f"{ingest.COLOUR_HELP} {_AS_TRAINED}")] = None,
    crop_bottom: Annotated[str | None, typer.Option(help=f"{ingest.CROP_HELP} {_AS_TRAINED}")] = None,
    tta: Annotated[bool, _TTA] = False,
    adapt: Annotated[float, _ADAPT] = 0.0,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Segment images of any size: a PNG of class indices and a colour overlay for each.

    Large images are taken in overlapping tiles, so memory stays bounded. A file with other content is never
    overwritten. Prints the folder.

    Files are scaled, coloured and cropped as 'archive build' did for the annotated images of the run. The pictures
    have the size of the file: cropped rows have the class index 255 (not annotated) and no colour.

    **Examples**

    `pscl-hpc predict runs/steel-0007 micrographs/*.tif --out segmented`

    `pscl-hpc predict runs/steel-0007 sem/*.tif --crop-bottom auto --out segmented`

    `pscl-hpc predict runs/steel-0007 steel/0295 --archive alloys.h5`
    """
    from pscl_hpc.segmentation import predict

    report = predict(
        run,
        images,
        out=out,
        archive=archive,
        percentiles=None if percentiles is None else ingest.two_percentiles(percentiles),
        luma=None if colour is None else ingest.luma(colour),
        crop_bottom=None if crop_bottom is None else ingest.rows_to_crop(crop_bottom),
        tta=tta,
        adapt=adapt,
        progress=not as_json,
    )
    for notice in report.notices:
        print(f"notice: {notice}", file=sys.stderr)
    if not as_json:
        for source, rows in report.bars:
            print(f"left out {rows} rows of information bar of {source}", file=sys.stderr)
    for source, reason in report.skipped:
        print(f"skipped {source}: {reason}", file=sys.stderr)
    if as_json:
        _print_json(report.to_json())
    else:
        typer.echo(report.folder)
    if report.skipped:
        raise typer.Exit(EXIT_SKIPPED)


def _print_json(content: dict[str, Any]) -> None:
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False))


def _number(value: float | None) -> str:
    return "   -  " if value is None else f"{value:.4f}"
