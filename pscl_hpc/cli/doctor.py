"""``pscl-hpc doctor``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from pscl_hpc.cli.options import JSON, print_json
from pscl_hpc.errors import EXIT_FAILED

MARKS = {"ok": "green", "note": "yellow", "problem": "bold red"}


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("doctor")(doctor)


def doctor(
    folder: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("."),
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Check what this machine can do, and say what to fix.

    Each line is **ok**, a **note** (works, but something is absent, slow or risky) or a **problem** (training cannot
    run). Exit code 3: there is a problem.

    **Examples**

    `pscl-hpc doctor`

    `pscl-hpc doctor --folder /scratch/me/runs`

    `pscl-hpc doctor --json`
    """
    from pscl_hpc.doctor import examine

    findings = list(examine(folder))
    failed = any(finding.level == "problem" for finding in findings)
    if as_json:
        values = [dataclasses.asdict(finding) for finding in findings]
        print_json({"ready": not failed, "findings": values})
    else:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, show_header=False, pad_edge=False)
        for finding in findings:
            text = Text(finding.text)
            if finding.fix:
                text.append(f"\n-> {finding.fix}", style="cyan")
            table.add_row(Text(finding.level, style=MARKS[finding.level]), finding.area, text)
        console = Console()
        console.print(table)
        console.print("Training cannot run here." if failed else "Training can run here.")
    if failed:
        raise typer.Exit(EXIT_FAILED)
