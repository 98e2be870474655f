"""``export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pscl_hpc.cli.options import JSON, print_json
from pscl_hpc.errors import UserError


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("export")(export_command)


def export_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished fine-tuning run.")],
    onnx: Annotated[bool, typer.Option("--onnx", help="Write an ONNX file.")] = False,
    out: Annotated[Path | None, typer.Option(help="The file. Default: RUN/model.onnx.")] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Write the model for other programs. The file is run in onnxruntime and its output compared with that of the run.

    Input: image, (1, channels, h, w) float32 in 0..1, a whole image; 8-bit images are divided by 255. Standardisation and
    normalisation are inside. Outputs: classes, (1, h, w) uint8, and probabilities, (1, classes, h, w). The class names
    are in the metadata of the file. Needs the extra onnx.

    **Example**

    `pscl-hpc export runs/steel-0007 --onnx`
    """
    from pscl_hpc.segmentation.onnx_export import export_onnx

    if not onnx:
        raise UserError("name a format: --onnx")
    found = export_onnx(run, out)
    if as_json:
        print_json(
            {
                "path": str(found.path),
                "largest_difference": found.largest_difference,
                "different_pixels": found.different_pixels,
                "sizes": found.sizes,
            }
        )
        return
    typer.echo(
        f"checked in onnxruntime: probabilities differ by at most {found.largest_difference:.1e}, classes in "
        f"{100 * found.different_pixels:.3g} % of the pixels"
    )
    typer.echo(found.path)
