"""The archive of a folder in which one image, or a few, have a given mask."""

from __future__ import annotations

import csv
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pscl_hpc.archive import Archive
from pscl_hpc.archive.build import BuildOptions, BuildResult, build, file_id
from pscl_hpc.archive.ingest.items import Item
from pscl_hpc.archive.ingest.sources import Plan, plan
from pscl_hpc.errors import UserError
from pscl_hpc.files import replacing
from pscl_hpc.workflow.masks import Annotated, images_of_masks, numbered_classes, template_colours

ARCHIVE_FILE = "archive.h5"
ANNOTATION_FILE = "annotation.csv"
ANNOTATION = "annotation"
"""Folder with copies of the masks."""


@dataclass(frozen=True)
class Inputs:
    """The packed folder."""

    archive: Path
    references: tuple[str, ...]
    """Ids of the images with the masks."""
    home: str
    """Their dataset."""
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    """What was found and paired, in sentences."""
    warnings: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    command: str
    """The command that packs the same archive."""
    waiting: tuple[str, ...] = ()
    """Ids of new images that are not packed yet, because a training on the archive is not finished."""


def check_files(folder: Path, masks: Sequence[Path]) -> None:
    """UserError unless the folder of the images and the files of the masks exist."""
    for path, what in ((folder, "the folder of the images"), *((mask, "the mask") for mask in masks)):
        if not path.exists():
            raise UserError(f"{path}: {what} is not found; check its path")
    if folders := [mask for mask in masks if mask.is_dir()]:
        raise UserError(
            f"{folders[0]}: is a folder; name the file of one mask, or pack all with 'archive build --masks'"
        )


def pack(
    folder: Path,
    masks: Sequence[Path],
    out: Path,
    *,
    images: Sequence[str] = (),
    classes: Sequence[str] = (),
    mask_values: Mapping[int | str, str] | None = None,
    scribbles: bool = False,
    options: BuildOptions | None = None,
    extend: bool = True,
    again: bool = False,
    progress: bool = False,
) -> Inputs:
    """Pack a folder into ``out/archive.h5``, or add what is new in it.

    Args:
        folder: As ``archive build`` takes it.
        masks: A mask of each annotated image; they may be anywhere.
        out: The folder of the results.
        images: Name, path or id of the image of each mask, where the names do not tell; the ending may be left out.
        classes: Class names in index order; empty: those of ``splits.json``, or numbers.
        mask_values: Value in the masks -> class name.
        scribbles: 0 in the masks is not annotated, 1 is the first class.
        options: How images are packed.
        extend: Add new images to an archive that exists; a training on it can only be resumed if it stays the same.
        again: Nothing was trained on an archive that exists, so it is packed again if the annotated image has changed.
        progress: Show a progress bar if the output is a terminal.

    Raises:
        UserError: no image belongs to a mask, its values are no class indices, ``archive build`` refuses the folder, or
            the archive that a training began with has another mask.
    """
    names, values = tuple(classes), dict(mask_values or {})
    if scribbles and not names:
        raise UserError(
            "--scribbles needs the names of the classes; add --classes, the one with the value 1 first"
        )
    drawn = {} if values else template_colours(masks, names)
    values = values or drawn
    found, numbered = _first_plan(folder, names, values, masks)
    annotated = images_of_masks(found, masks, images)
    home = annotated[0][1].dataset
    notes = list(found.notes)
    if drawn:
        listed = ", ".join(f"{colour} is {name}" for colour, name in drawn.items())
        notes.append(f"the colours are those of the empty mask that 'segment' writes: {listed}")
    known = found.collections[home].classes
    if not names and not values and (not known or home in numbered):
        names = numbered_classes(masks)
        said = f"{masks[0].name} has" if len(masks) == 1 else "the masks have"
        notes.append(
            f"{said} {len(names)} values, named {', '.join(names)}; name them with --classes, and add "
            "--scribbles if 0 means not annotated"
        )
    metadata = _annotation(out, annotated)
    found = plan([folder], metadata=metadata, classes=names, mask_values=values, scribbles=scribbles)
    collection = found.collections[home]
    if names and collection.classes != names:
        raise UserError(
            f"--classes is {','.join(names)}, but splits.json of {home} names the classes "
            f"{','.join(collection.classes)}; leave --classes out"
        )
    archive = out / ARCHIVE_FILE
    warnings: tuple[str, ...] = ()
    skipped, waiting = found.skipped, _not_packed(found, archive)
    everything = extend or not archive.exists()
    # A training that goes on keeps its archive; the annotated images must still be those in it.
    wanted = found if everything else replace(found, items=_only(found, annotated), skipped=())
    packed = build(wanted, archive, options or BuildOptions(), progress=progress)
    if again and any(_changed(packed, item) for _, item in annotated):
        archive.unlink()
        packed = build(found, archive, options or BuildOptions(), progress=progress)
    for mask, item in annotated:
        _check_packed(packed, item, mask)
    if packed.cropped:
        rows = sorted(set(packed.cropped.values()))
        notes.append(
            f"cut information bars from {len(packed.cropped)} of {len(found.items)} images ({rows[0]}"
            f"{f' to {rows[-1]}' if len(rows) > 1 else ''} rows)"
        )
    if everything:
        warnings, skipped, waiting = packed.warnings, packed.skipped, ()
    if gone := _no_longer_found(found, archive):
        named = f"{', '.join(gone[:3])}{', ...' if len(gone) > 3 else ''}"
        warnings += (
            f"{len(gone)} of the images measured {'are' if len(gone) > 1 else 'is'} no longer in {folder} ({named}); to "
            "leave them out, choose another --out",
        )
    return Inputs(
        archive,
        tuple(item.id for _, item in annotated),
        home,
        collection.classes,
        tuple(notes),
        warnings,
        tuple((one.path, one.reason) for one in skipped),
        _command(folder, out, metadata, names, values, options or BuildOptions(), scribbles=scribbles),
        waiting,
    )


def _not_packed(found: Plan, archive: Path) -> tuple[str, ...]:
    """Ids of images that are not in an archive."""
    packed = {file_id(record.id) for record in Archive(archive).records} if archive.exists() else set()
    return tuple(item.id for item in found.items if item.id not in packed)


def _no_longer_found(found: Plan, archive: Path) -> tuple[str, ...]:
    """Ids of images of an archive that are not among the files."""
    files = {item.id for item in found.items}
    return tuple(record.id for record in Archive(archive).records if file_id(record.id) not in files)


def _first_plan(
    folder: Path, names: tuple[str, ...], values: Mapping[int | str, str], masks: Sequence[Path]
) -> tuple[Plan, frozenset[str]]:
    """The images of a folder before the masks are added, and the collections whose classes are numbered.

    A folder in which other images have masks needs class names, one without masks refuses them.
    """
    try:
        return plan([folder]), frozenset()
    except UserError:
        if names or values:
            return plan([folder], classes=names, mask_values=values), frozenset()
        found = plan([folder], classes=numbered_classes(masks))
        return found, frozenset(found.collections)


def _annotation(out: Path, annotated: Sequence[Annotated]) -> Path | None:
    """Copies of the masks that no image has by its name, and the CSV file that gives them to their images, if any."""
    rows = []
    masks = sorted({mask for mask, _ in annotated})
    for mask, item in annotated:
        if item.mask is not None and item.mask.resolve() == mask.resolve():
            continue
        same = [path for path in masks if path.name.casefold() == mask.name.casefold()]
        name = mask.name if len(same) == 1 else f"{same.index(mask) + 1}_{mask.name}"
        copy = out / ANNOTATION / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        with replacing(copy) as temporary:
            shutil.copyfile(mask, temporary)
        rows.append((item.path, f"{ANNOTATION}/{name}", "yes"))
    if not rows:
        return None
    path = out / ANNOTATION_FILE
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file", "mask", "reference"), *rows])
    return path


def _only(found: Plan, annotated: Sequence[Annotated]) -> tuple[Item, ...]:
    ids = {item.id for _, item in annotated}
    return tuple(one for one in found.items if one.id in ids)


def _reasons(packed: BuildResult, item: Item) -> list[str]:
    """Why an image was skipped."""
    return [one.reason for one in packed.skipped if one.path in (item.source, str(item.path))]


def _changed(packed: BuildResult, item: Item) -> bool:
    """Whether the archive had the image with other pixels or another mask before."""
    return any("is already in" in reason for reason in _reasons(packed, item))


def _check_packed(packed: BuildResult, item: Item, mask: Path) -> None:
    """UserError if an annotated image could not be packed."""
    if _changed(packed, item):
        raise UserError(
            f"{mask}: {packed.path} has {item.id} with another mask or other pixels, from an earlier call; choose "
            "another --out to train again"
        )
    for reason in _reasons(packed, item):
        raise UserError(f"{mask}: {item.path} could not be packed with it: {reason}")


def _command(
    folder: Path,
    out: Path,
    metadata: Path | None,
    classes: Sequence[str],
    values: Mapping[int | str, str],
    options: BuildOptions,
    *,
    scribbles: bool,
) -> str:
    words = ["pscl-hpc", "archive", "build", str(folder)]
    if metadata is not None:
        words += ["--metadata", str(metadata)]
    if classes:
        words += ["--classes", ",".join(classes)]
    if values:
        words += ["--mask-values", ",".join(f"{value}={name}" for value, name in values.items())]
    words += ["--scribbles"] if scribbles else []
    defaults = BuildOptions().flags()
    for key, flag in options.flags().items():
        if flag != defaults[key]:
            words += flag.split()
    return shlex.join([*words, "--out", str(out / ARCHIVE_FILE)])
