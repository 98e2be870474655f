"""``finetune``, ``classifier``, ``evaluate``, ``predict``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pscl_hpc.cli import inference
from pscl_hpc.cli.inference import Tta
from pscl_hpc.cli.options import JSON, OVERRIDES, print_json
from pscl_hpc.errors import EXIT_SKIPPED

_RUN = typer.Argument(metavar="RUN", help="Folder of a finished fine-tuning run or classifier.")


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("finetune")(finetune_command)
    app.command("classifier")(classifier_command)
    app.command("evaluate")(evaluate_command)
    app.command("predict")(predict_command)


def finetune_command(
    config: Annotated[Path, typer.Option("--config", help="Configuration file; see configs/finetune/.")],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Train a segmentation model on one annotated image (or a few).

    Prints the run folder. Ctrl-C saves a checkpoint after the current step and stops; a second Ctrl-C stops at once.
    To resume an interrupted run, repeat the command with its folder as run=...

    **Examples**

    `pscl-hpc finetune --config configs/finetune/default.yaml data.archive=alloys.h5 references=[steel/0007]`

    `pscl-hpc finetune --config configs/finetune/default.yaml data.archive=alloys.h5 references=[steel/0007]
    pretrained=runs/pretrain-1 run=runs/steel-0007`
    """
    from pscl_hpc.cli.signals import stop_after_step
    from pscl_hpc.config import load_config
    from pscl_hpc.segmentation import finetune
    from pscl_hpc.segmentation.config import FinetuneConfig
    from pscl_hpc.training import read_place

    loaded = load_config(config, overrides or (), kind="finetune")
    assert isinstance(loaded, FinetuneConfig)
    with stop_after_step():
        folder = finetune(loaded, progress=not as_json)
    if not read_place().first:
        return
    if as_json:
        print_json({"run": str(folder.path), "best": folder.record.get("best")})
    else:
        best = folder.record.get("best", {})
        if best.get("mean_dice") is not None:
            typer.echo(
                f"best step {best['step']}: mean Dice {best['mean_dice']:.4f} on the validation images"
            )
        typer.echo(folder.path)


def classifier_command(
    config: Annotated[Path, typer.Option("--config", help="Configuration file; see configs/classifier/.")],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Train a pixel classifier on one annotated image (or a few), in seconds: a first look before any training.

    Each pixel is described by classical filters, by the feature maps of a frozen network, or by both, and classified by
    a small network, a linear one, nearest neighbours, a random forest or gradient boosting. Prints the run folder, which
    'evaluate', 'predict' and 'report' take like that of a fine-tuning.

    **Examples**

    `pscl-hpc classifier --config configs/classifier/pixel-classifier.yaml data.archive=alloys.h5
    references=[steel/0007]`

    `pscl-hpc classifier --config configs/classifier/frozen-features.yaml data.archive=alloys.h5
    references=[steel/0007] pretrained=runs/pretrain-1 features.model=null head.name=forest`
    """
    from pscl_hpc.config import load_config
    from pscl_hpc.segmentation import train_classifier
    from pscl_hpc.segmentation.classifier_config import ClassifierConfig

    loaded = load_config(config, overrides or (), kind="classifier")
    assert isinstance(loaded, ClassifierConfig)
    folder = train_classifier(loaded, progress=not as_json)
    if as_json:
        print_json(
            {"run": str(folder.path), "pixels": folder.record["pixels"], "seconds": folder.record["seconds"]}
        )
    else:
        typer.echo(", ".join(f"{count} pixels of {name}" for name, count in folder.record["pixels"].items()))
        typer.echo(folder.path)


def evaluate_command(
    run: Annotated[Path, _RUN],
    split: Annotated[
        list[str] | None,
        typer.Option(
            "--split", help="Split to score; repeat the option for several. Default: all test splits."
        ),
    ] = None,
    archive: Annotated[
        Path | None, typer.Option("--archive", help="Archive of the images. Default: that of the training.")
    ] = None,
    tta: Annotated[Tta | None, inference.TTA] = None,
    adapt: Annotated[float | None, inference.ADAPT] = None,
    correct_shading: Annotated[bool | None, inference.CORRECT_SHADING] = None,
    unweighted: Annotated[bool | None, inference.UNWEIGHTED] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Score a fine-tuned run or a classifier: Dice per class, pooled over the images, IoU and pixel accuracy.

    Writes evaluation.json and the predictions to the run folder and prints the path of the file.

    **Examples**

    `pscl-hpc evaluate runs/steel-0007`

    `pscl-hpc evaluate runs/steel-0007 --split val --split test --json`
    """
    from pscl_hpc.segmentation import EVALUATION_FILE, evaluate

    content = evaluate(
        run,
        splits=split,
        archive=archive,
        tta=tta,
        adapt=adapt,
        correct_shading=correct_shading,
        unweighted=unweighted,
        progress=not as_json,
    )
    if as_json:
        print_json(content)
        return
    for name, scores in content["splits"].items():
        count = f"{scores['images']} image{'' if scores['images'] == 1 else 's'}"
        typer.echo(
            f"{name}: {count}, mean Dice {_number(scores['mean_dice'])}, "
            f"mean IoU {_number(scores['mean_iou'])}, pixel accuracy {_number(scores['pixel_accuracy'])}"
        )
        for label, value in scores["dice"].items():
            typer.echo(f"  {_number(value)}  {label}")
    typer.echo(run / EVALUATION_FILE)


def predict_command(
    run: Annotated[Path, _RUN],
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE", help="Image files or folders; with --archive, image ids.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Output folder. Default: RUN/predictions/files.")
    ] = None,
    archive: Annotated[
        Path | None, typer.Option("--archive", help="Read the images from this archive.")
    ] = None,
    percentiles: Annotated[str | None, inference.PERCENTILES] = None,
    colour: Annotated[str | None, inference.COLOUR] = None,
    crop_bottom: Annotated[str | None, inference.CROP_BOTTOM] = None,
    page: Annotated[str | None, inference.PAGE] = None,
    intensity_range: Annotated[str | None, inference.RANGE] = None,
    tta: Annotated[Tta | None, inference.TTA] = None,
    adapt: Annotated[float | None, inference.ADAPT] = None,
    correct_shading: Annotated[bool | None, inference.CORRECT_SHADING] = None,
    unweighted: Annotated[bool | None, inference.UNWEIGHTED] = None,
    confidence: Annotated[
        bool,
        typer.Option(
            "--confidence",
            help="Also write NAME.confidence.png: the probability of the predicted class, 0 to 255.",
        ),
    ] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Segment images of any size: writes a PNG of class indices and a colour overlay for each.

    A folder stands for the images in it and in its subfolders. Other files in it are listed as skipped. Large images
    are processed in overlapping tiles to limit memory. Files with other content are never overwritten. Prints the
    output folder.

    Files are scaled, converted to grey and cropped as 'archive build' did for the annotated images of the run. The
    output has the size of the file: cropped rows have the class index 255 (not annotated) and no colour.

    **Examples**

    `pscl-hpc predict runs/steel-0007 micrographs --out segmented`

    `pscl-hpc predict runs/steel-0007 sem/*.tif --crop-bottom auto --out segmented`

    `pscl-hpc predict runs/steel-0007 steel/0295 --archive alloys.h5`
    """
    from pscl_hpc.segmentation import predict

    report = predict(
        run,
        images,
        out=out,
        archive=archive,
        tta=tta,
        adapt=adapt,
        correct_shading=correct_shading,
        unweighted=unweighted,
        confidence=confidence,
        progress=not as_json,
        **inference.file_options(percentiles, colour, crop_bottom, page, intensity_range),
    )
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if not as_json:
        for source, rows in report.bars:
            print(f"cropped {rows} rows of information bar from {source}", file=sys.stderr)
    for source, reason in report.skipped:
        print(f"skipped {source}: {reason}", file=sys.stderr)
    if report.skipped:
        written = len({image.source for image in report.written})
        print(f"segmented: {written}, skipped: {len(report.skipped)}", file=sys.stderr)
    if as_json:
        print_json(report.to_json())
    else:
        typer.echo(report.folder)
    if report.skipped:
        raise typer.Exit(EXIT_SKIPPED)


def _number(value: float | None) -> str:
    return "   -  " if value is None else f"{value:.4f}"
