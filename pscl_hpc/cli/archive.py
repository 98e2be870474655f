"""``archive build | info | check | synth | compare | suggest``."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from pscl_hpc.cli import ingest
from pscl_hpc.cli.archive_build import build_command
from pscl_hpc.cli.archive_images import compare_command, suggest_command
from pscl_hpc.cli.options import ARCHIVE, JSON, check_new_png, counted, print_json
from pscl_hpc.errors import EXIT_SKIPPED, UserError

archive_app = typer.Typer(
    name="archive",
    help="Pack micrographs and masks into an HDF5 archive, check it, show its content.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
archive_app.command("build")(build_command)


@archive_app.command("info")
def info_command(
    file: Annotated[Path, ARCHIVE],
    contact_sheet: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Also draw samples of every collection.")
    ] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Show the content of an archive: collections, classes, splits, sizes, storage.

    **Examples**

    `pscl-hpc archive info alloys.h5`

    `pscl-hpc archive info alloys.h5 --contact-sheet alloys.png`

    `pscl-hpc archive info alloys.h5 --json | jq .fingerprint`
    """
    from pscl_hpc.archive import Archive
    from pscl_hpc.archive.summary import summarise

    archive = Archive(file)
    summary = summarise(archive)
    if contact_sheet is not None:
        from pscl_hpc.archive.contact_sheet import contact_sheet as draw

        check_new_png("--contact-sheet", contact_sheet)
        draw(archive, contact_sheet)
        summary["contact_sheet"] = str(contact_sheet)
    if as_json:
        print_json(summary)
        return
    _print_summary(summary)
    typer.echo(contact_sheet if contact_sheet is not None else file)


@archive_app.command("check")
def check_command(file: Annotated[Path, ARCHIVE], as_json: Annotated[bool, JSON] = False) -> None:
    """Verify an archive: checksums, masks, references, copies of images, specimens in several splits.

    Copies are found even if rotated, mirrored, rescaled or changed in brightness. The exit code is 0 if there is no
    finding and 1 otherwise.

    **Examples**

    `pscl-hpc archive check alloys.h5`

    `pscl-hpc archive check alloys.h5 --json | jq '.findings[] | select(.kind == "leak")'`
    """
    from pscl_hpc.archive import Archive
    from pscl_hpc.archive.check import check

    archive = Archive(file)
    remarks: list[str] = []
    findings = check(archive, progress=not as_json, remark=remarks.append)
    if as_json:
        print_json(
            {
                "archive": str(file),
                "images": len(archive),
                "findings": [asdict(item) for item in findings],
                "remarks": remarks,
            }
        )
    else:
        for finding in findings:
            typer.echo(str(finding))
        for remark in remarks:
            print(remark, file=sys.stderr)
        typer.echo(f"{counted(len(archive), 'image')} checked, {counted(len(findings), 'finding')}")
        typer.echo(file)
    if findings:
        raise typer.Exit(EXIT_SKIPPED)


@archive_app.command("synth")
def synth_command(
    out: Annotated[Path, typer.Option(help="Archive file to make.")],
    images: Annotated[int, typer.Option(help="Number of images of all families together.")] = 24,
    seed: Annotated[int, typer.Option(help="Random seed; the same seed gives the same images.")] = 0,
    size: Annotated[str, typer.Option(metavar="H,W", help="Height and width in pixels.")] = "256,256",
    family: Annotated[
        list[str] | None,
        typer.Option(
            "--family", help="grains, precipitates or particles; repeat the option for several. Default: all."
        ),
    ] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Make an archive of synthetic micrographs with exact masks: four classes, six production batches.

    Batches with inverted contrast are in a split of their own, test_ood (docs/synthetic.md).

    **Examples**

    `pscl-hpc archive synth --out synthetic.h5 --images 24 --seed 0`

    `pscl-hpc archive synth --out large.h5 --images 200 --seed 7 --size 384,512 --family grains`
    """
    from pscl_hpc.archive import Archive
    from pscl_hpc.archive.synthesis import FAMILIES, write_synthetic_archive

    what = "height and width in pixels, such as 256,384"
    height, width = ingest.two_numbers("--size", size, what)
    if not (height.is_integer() and width.is_integer()):
        raise UserError(f"--size is {size!r}; give {what}")
    shape = (int(height), int(width))
    path = write_synthetic_archive(out, images, seed, shape, family or FAMILIES, progress=not as_json)
    archive = Archive(path)
    if as_json:
        print_json({"archive": str(path), "images": len(archive), "fingerprint": archive.fingerprint})
    else:
        typer.echo(f"{counted(len(archive), 'image')} in {counted(len(archive.collections), 'collection')}")
        typer.echo(path)


archive_app.command("compare")(compare_command)
archive_app.command("suggest")(suggest_command)


def _print_summary(summary: dict[str, Any]) -> None:
    for item in summary["collections"]:
        sizes = [f"{size['height']} x {size['width']}" for size in item["sizes"]]
        typer.echo(
            f"{item['name']}: {counted(item['images'], 'image')}, {item['annotated']} annotated; "
            f"{_pairs(item['pixels'])}; {', '.join(sizes) if len(sizes) <= 3 else f'{len(sizes)} sizes'}"
        )
        lines = {}
        if any(item["splits"]):
            lines["splits"] = _pairs({name or "none": count for name, count in item["splits"].items()})
        if item["classes"]:
            lines["classes"] = ", ".join(
                f"{index} {name}"
                f"{' (background)' if index == item['background'] else ''}"
                f"{' (not scored)' if index in item['ignore_classes'] else ''}"
                for index, name in enumerate(item["classes"])
            )
        for key in ("references", "alloys", "production_batches"):
            if item[key]:
                more = f" and {len(item[key]) - 8} more" if len(item[key]) > 8 else ""
                lines[key.replace("_", " ")] = f"{', '.join(item[key][:8])}{more}"
        if item["um_per_pixel"]:
            low, high = item["um_per_pixel"]
            lines["um/pixel"] = f"{low:g}" + (f" to {high:g}" if high != low else "")
        if any(packed["options"] for packed in item["packed"]):
            lines["packed"] = "; ".join(_packed(packed, item["images"]) for packed in item["packed"])
        for title, text in lines.items():
            typer.echo(f"  {title:<19} {text}")
    pools = (
        f"{name} {pool['codec']} {pool['stored_bytes'] / 1e6:.1f} MB"
        for name, pool in summary["pools"].items()
    )
    typer.echo(
        f"{counted(summary['images'], 'image')}, {summary['bytes'] / 1e6:.1f} MB in "
        f"{counted(summary['shards'], 'file')} ({', '.join(pools)})"
    )
    typer.echo(f"fingerprint {summary['fingerprint']}")


def _packed(packed: dict[str, Any], of: int) -> str:
    from pscl_hpc.archive.options import options_from_tree

    options = str(options_from_tree(packed["options"])) if packed["options"] else "not recorded"
    return options if packed["images"] == of else f"{options} ({counted(packed['images'], 'image')})"


def _pairs(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
