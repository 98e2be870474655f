"""``pscl-hpc report``: one HTML page from any mix of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pscl_hpc.errors import EXIT_SKIPPED


def register(app: typer.Typer) -> None:
    """Add the command ``report``."""
    app.command("report")(report)


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="Run folders, or folders that contain some, such as runs/demo.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The HTML file to write; by default report.html in the first RUN."),
    ] = None,
) -> None:
    """Write one self-contained HTML page: scores, predictions, sampled patches, features, curves, provenance.

    Runs may be unfinished, failed or not evaluated; the page says so. Files that cannot be read are named, with exit
    code 1.

    **Examples**

    `pscl-hpc report runs/demo`

    `pscl-hpc report runs/finetune runs/from-scratch --out compare.html`
    """
    # Imported here: matplotlib takes a second.
    from pscl_hpc.report import write_report

    done = write_report(runs, out)
    for line in done.damage:
        typer.echo(f"skipped: {line}", err=True)
    typer.echo(str(done.path))
    if done.damage:
        raise typer.Exit(EXIT_SKIPPED)
