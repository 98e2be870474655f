"""Arguments and output that several commands share."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from pscl_hpc.errors import UserError
from pscl_hpc.files import readable

ARCHIVE = typer.Argument(metavar="FILE", help="Archive file, or folder of shards.")
JSON = typer.Option("--json", help="Print one JSON object, for programs.")
OVERRIDES = typer.Argument(metavar="KEY=VALUE", help="Values that override those of the file.")


def check_new_png(option: str, path: Path) -> None:
    """UserError, naming the option, unless a path is that of a new PNG."""
    if path.suffix.lower() != ".png":
        raise UserError(f"{option} is {path}; give a file name that ends in .png")
    if path.exists():
        raise UserError(f"{path} already exists; give another name or remove it")


def print_json(value: object) -> None:
    """Print the one JSON value of a command."""
    typer.echo(readable(json.dumps(value, indent=2, ensure_ascii=False)))


def counted(number: int, noun: str) -> str:
    """``1 image``, ``2 images``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
