"""``archive compare | suggest``: what the images of an archive look like."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pscl_hpc.cli.options import ARCHIVE, JSON, check_new_png, print_json
from pscl_hpc.errors import UserError


def compare_command(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Archives, each a file or a folder of shards.")
    ],
    to: Annotated[str, typer.Option(metavar="DATASET", help="Compare only with this collection.")] = "",
    splits: Annotated[
        str, typer.Option(help="Splits to compare, separated by commas; an empty name means no split.")
    ] = "train,",
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Compare how the images of collections look, to choose images for pretraining.

    Grey levels, gradients and spatial frequencies are compared: 0 means identical, 1 nothing in common. The last line
    shows the mean distance between random halves of each collection; a distance that is not larger may be due to chance.

    **Examples**

    `pscl-hpc archive compare alloys.h5`

    `pscl-hpc archive compare alloys.h5 pool.h5 --to steel`
    """
    from pscl_hpc.archive import Archive
    from pscl_hpc.archive.similarity import compare

    found = compare(
        [Archive(file) for file in files],
        splits=[name.strip() for name in splits.split(",")],
        progress=not as_json,
    )
    if to and to not in found.names:
        raise UserError(f"--to is {to!r}; choose one of {', '.join(found.names)}")
    rows = [found.names.index(to)] if to else range(len(found.names))
    pairs = [
        (row, col) for row in rows for col in range(len(found.names)) if (row != col if to else row < col)
    ]
    halves = [None if value != value else round(float(value), 4) for value in found.distances.diagonal()]
    if as_json:
        print_json(
            {
                "halves": dict(zip(found.names, halves, strict=True)),
                "pairs": [
                    {
                        "a": found.names[a],
                        "b": found.names[b],
                        "distance": round(float(found.distances[a, b]), 4),
                    }
                    for a, b in pairs
                ],
            }
        )
        return
    for row, col in sorted(pairs, key=lambda pair: found.distances[pair]):
        typer.echo(f"{found.distances[row, col]:.3f}  {found.names[row]} - {found.names[col]}")
    named = (f"{name} {value}" for name, value in zip(found.names, halves, strict=True) if value is not None)
    typer.echo(f"halves of one collection: {', '.join(named)}")


def suggest_command(
    file: Annotated[Path, ARCHIVE],
    dataset: Annotated[
        list[str] | None,
        typer.Option(help="Collection to choose from; repeat the option for several. Default: all together."),
    ] = None,
    splits: Annotated[
        str, typer.Option(help="Splits to choose from, separated by commas; an empty name means no split.")
    ] = "train,",
    count: Annotated[int, typer.Option(help="Images to suggest.")] = 1,
    trunk: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Features that images are compared by: imagenet, filters, or the run folder of a pretraining. "
            "Default: imagenet if its weights are installed, else filters.",
        ),
    ] = "",
    out: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Also draw why these images were chosen.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed; the same seed suggests the same images.")] = 0,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Suggest which images to annotate: those whose patches cover most textures of the archive. Masks are not read.

    A warning lists images that look different from all suggested ones, and how many suggestions would cover them.

    **Examples**

    `pscl-hpc archive suggest alloys.h5 --dataset steel --out why.png`

    `pscl-hpc archive suggest alloys.h5 --dataset steel --count 3 --trunk runs/pscl`
    """
    from pscl_hpc.archive import Archive
    from pscl_hpc.suggestion import dense_features, draw, suggest

    if out is not None:
        check_new_png("--out", out)
    archive = Archive(file)
    found = suggest(
        archive,
        dense_features(trunk),
        datasets=dataset,
        splits=[name.strip() for name in splits.split(",")],
        count=count,
        seed=seed,
        progress=not as_json,
    )
    if out is not None:
        draw(archive, found, out)
    for warning in found.warnings():
        print(f"warning: {warning}", file=sys.stderr)
    if as_json:
        print_json(found.to_json() | ({"picture": str(out)} if out is not None else {}))
        return
    for line in found.lines():
        typer.echo(line)
    if out is not None:
        typer.echo(out)
