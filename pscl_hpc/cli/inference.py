"""Options of the commands that segment images with a run: how the model is applied, and how image files are read."""

from __future__ import annotations

from typing import Any, Literal

import typer

from pscl_hpc.cli import ingest

Tta = Literal["none", "rotations", "scales"]
TTA = typer.Option(
    "--tta",
    help="Test-time augmentation: average over eight rotations and reflections, or over these at three magnifications, "
    "in 8 or 26 times the time of one pass. Default: as configured in the run.",
)
ADAPT = typer.Option(
    "--adapt",
    metavar="SHARE",
    help="Weight of each image's own statistics in batch normalisation, for example 0.1, for images whose exposure "
    "differs from the training images. Default: as configured in the run.",
)
CORRECT_SHADING = typer.Option(
    "--correct-shading/--no-correct-shading",
    help="Subtract a smooth surface from each image, for images of uneven illumination (vignetting, light from one side). "
    "Not for layers or halves of different phases. Default: as configured in the run.",
)
UNWEIGHTED = typer.Option(
    "--unweighted/--weighted",
    help="Take the class weights of the training out of the probabilities: rare classes are predicted less often, and "
    "phase fractions of images like the annotated one are closer to those of masks. Default: as configured in the run.",
)

_AS_TRAINED = "For files only. Default: as for the annotated images of the run."
PERCENTILES = typer.Option("--percentiles", help=f"{ingest.PERCENTILES_HELP} {_AS_TRAINED}")
COLOUR = typer.Option("--colour", help=f"{ingest.COLOUR_HELP} {_AS_TRAINED}")
CROP_BOTTOM = typer.Option("--crop-bottom", help=f"{ingest.CROP_HELP} {_AS_TRAINED}")
PAGE = typer.Option("--page", help=f"{ingest.PAGE_HELP} {_AS_TRAINED}")
RANGE = typer.Option("--range", help=f"{ingest.RANGE_HELP} {_AS_TRAINED}")


def file_options(
    percentiles: str | None,
    colour: str | None,
    crop_bottom: str | None,
    page: str | None,
    intensity_range: str | None,
) -> dict[str, Any]:
    """How files are read, as arguments of :func:`~pscl_hpc.segmentation.predict.predict`; None: as for the training."""
    return {
        "percentiles": None if percentiles is None else ingest.two_percentiles(percentiles),
        "luma": None if colour is None else ingest.luma(colour),
        "crop_bottom": None if crop_bottom is None else ingest.rows_to_crop(crop_bottom),
        "page": None if page is None else ingest.page_number(page),
        "common_range": None if intensity_range is None else ingest.common_range(intensity_range),
    }
