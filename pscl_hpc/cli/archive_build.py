"""``archive build``."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pscl_hpc.cli import ingest
from pscl_hpc.cli.options import JSON, counted, print_json
from pscl_hpc.errors import EXIT_SKIPPED, UserError


def build_command(
    out: Annotated[str, typer.Option(help="Archive to make or to extend: FILE.h5, or FOLDER/ for shards.")],
    sources: Annotated[
        list[Path] | None, typer.Argument(metavar="SRC...", help="Image files or folders of images.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of images, with --masks; instead of SRC.")
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder of the masks of --images, or a file of shapes drawn on them."
        ),
    ] = None,
    metadata: Annotated[
        Path | None, typer.Option(help="CSV file with metadata of images; see docs/archive.md.")
    ] = None,
    classes: Annotated[
        str, typer.Option(help="Class names in index order, for folders without splits.json.")
    ] = "",
    mask_values: Annotated[
        str,
        typer.Option(
            metavar="VALUE=CLASS,...",
            help="Classes of the values in the masks, such as 0=matrix,255=carbide,128=ignore, or of their colours, "
            "such as '#000000=matrix,#ff0000=carbide'; 'ignore' means not annotated. Without it, values are class "
            "indices.",
        ),
    ] = "",
    scribbles: Annotated[
        bool,
        typer.Option(
            "--scribbles",
            help="0 in the masks, and what is outside drawn shapes, is not annotated; 1 is the first class.",
        ),
    ] = False,
    page: Annotated[str, typer.Option(help=ingest.PAGE_HELP)] = "all",
    colour: Annotated[str, typer.Option(help=ingest.COLOUR_HELP)] = "keep",
    crop_bottom: Annotated[str, typer.Option(help=ingest.CROP_HELP)] = "0",
    compression: Annotated[
        str, typer.Option(help="auto, none, gzip, lzf or zstd; see docs/archive.md.")
    ] = "auto",
    percentiles: Annotated[str, typer.Option(help=ingest.PERCENTILES_HELP)] = "0.5,99.5",
    intensity_range: Annotated[str, typer.Option("--range", help=ingest.RANGE_HELP)] = "image",
    shard_size: Annotated[
        str, typer.Option(help="Size of a shard before compression, e.g. 500M or 2G; --out is then a folder.")
    ] = "",
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Pack PNG, JPEG, BMP and TIFF images into an archive, or add them to one.

    A folder with img/ (or images/) may have masks of the same names in gt/, masks/ or labels/, and a splits.json with
    classes and splits. A folder of such folders is packed as several collections. Other usual names, such as train/ with
    train_annot/ or 0.tif with 0_mask.png, are recognised and reported; --images and --masks name any other two folders.
    Masks are images of class indices or colours, or shapes from LabelMe, COCO, CVAT or ImageJ. 16-bit and float images
    keep their depth. The same command resumes an interrupted build.

    Files that cannot be packed and images outside these folders are listed with the reason; the rest is packed, and the
    exit code is 1.

    **Examples**

    `pscl-hpc archive build data/steel data/superalloy --out alloys.h5`

    `pscl-hpc archive build sem/ --metadata sem.csv --classes matrix,carbide --crop-bottom auto --out sem.h5`

    `pscl-hpc archive build --images sem/ --masks painted/ --mask-values 0=matrix,255=carbide --out sem.h5`

    `pscl-hpc archive build mosaics/ --out mosaics/ --shard-size 2G --compression zstd`
    """
    from pscl_hpc.archive import Archive
    from pscl_hpc.archive.build import BuildOptions, build
    from pscl_hpc.archive.codecs import AUTO, CODECS
    from pscl_hpc.archive.ingest.sources import plan

    if compression not in (AUTO, *CODECS):
        raise UserError(f"--compression is {compression!r}; choose one of {', '.join((AUTO, *CODECS))}")
    options = BuildOptions(
        luma=ingest.luma(colour),
        crop_bottom=ingest.rows_to_crop(crop_bottom),
        compression=compression,
        percentiles=ingest.two_percentiles(percentiles),
        page=ingest.page_number(page),
        common_range=ingest.common_range(intensity_range),
    )
    path, shard_bytes = _target(out, shard_size)
    names = [name.strip() for name in classes.split(",")] if classes else []
    if any(not name for name in names):
        raise UserError(f"--classes is {classes!r}; separate the names by single commas")
    found = plan(
        sources or [],
        metadata=metadata,
        classes=names,
        mask_values=ingest.values_of_masks(mask_values),
        scribbles=scribbles,
        pair=ingest.image_and_mask_folder(sources, images, masks),
    )
    for note in found.notes:
        print(note, file=sys.stderr)
    packed = build(
        found,
        path,
        options,
        shard_bytes=shard_bytes,
        progress=not as_json,
    )
    for item in packed.skipped:
        print(f"skipped {item.path}: {item.reason}", file=sys.stderr)
    for warning in packed.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if others := packed.with_other_options:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        print(
            f"warning: {others[0]}{more} of the unchanged images were packed with other options than {options}; build a "
            "new file to pack them again",
            file=sys.stderr,
        )
    archive = Archive(path)
    if as_json:
        print_json(
            {
                "archive": str(path),
                "images": len(archive),
                "added": packed.added,
                "unchanged": packed.unchanged,
                "skipped": [asdict(item) for item in packed.skipped],
                "cropped": packed.cropped,
                "notes": list(found.notes),
                "warnings": list(packed.warnings),
                "with_other_options": list(packed.with_other_options),
                "fingerprint": archive.fingerprint,
            }
        )
    else:
        for name, rows in packed.cropped.items():
            print(f"cut {rows} rows of information bar from {name}", file=sys.stderr)
        typer.echo(
            f"{counted(packed.added, 'image')} added, {packed.unchanged} unchanged, {len(packed.skipped)} skipped; "
            f"{len(archive)} in the archive"
        )
        typer.echo(path)
    if packed.skipped:
        raise typer.Exit(EXIT_SKIPPED)


def _target(out: str, shard_size: str) -> tuple[Path, int | None]:
    """The archive path and, for a folder of shards, the bytes per shard."""
    from pscl_hpc.archive.build import SHARD_BYTES

    path = Path(out)
    if shard_size:
        match = re.fullmatch(r"(\d+)\s*([KMGT])i?B?", shard_size.strip(), re.IGNORECASE)
        if match is None or int(match[1]) == 0:
            raise UserError(f"--shard-size is {shard_size!r}; write a size such as 500M or 2G")
        return path, int(match[1]) << 10 * (" KMGT".index(match[2].upper()))
    if out.endswith("/") or path.is_dir():
        return path, SHARD_BYTES
    if path.suffix.lower() not in (".h5", ".hdf5"):
        raise UserError(f"--out is {out}; it must end in .h5 for one file or in / for a folder of shards")
    return path, None
