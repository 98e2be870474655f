"""The archive of a folder in which one image has a given mask."""

from __future__ import annotations

import csv
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from pscl_hpc.archive import Archive
from pscl_hpc.archive.build import BuildOptions, BuildResult, build, file_id
from pscl_hpc.archive.format import IGNORE_INDEX
from pscl_hpc.archive.ingest.annotations import annotation_suffixes, read_annotations
from pscl_hpc.archive.ingest.errors import Unreadable
from pscl_hpc.archive.ingest.items import Item
from pscl_hpc.archive.ingest.mask_pixels import read_pages
from pscl_hpc.archive.ingest.mask_values import suggestion
from pscl_hpc.archive.ingest.pairing import pair
from pscl_hpc.archive.ingest.sources import Plan, plan
from pscl_hpc.errors import UserError, did_you_mean
from pscl_hpc.files import nfc, replacing

ARCHIVE_FILE = "archive.h5"
ANNOTATION_FILE = "annotation.csv"
ANNOTATION = "annotation"
"""Folder with a copy of the mask."""
_MOST_CLASSES = 12
"""Classes that are named by number; more values are hardly class indices."""


@dataclass(frozen=True)
class Inputs:
    """The packed folder."""

    archive: Path
    reference: str
    """Id of the image with the mask."""
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    """What was found and paired, in sentences."""
    warnings: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    command: str
    """The command that packs the same archive."""
    waiting: tuple[str, ...] = ()
    """Ids of new images that are not packed yet, because a training on the archive is not finished."""


def pack(
    folder: Path,
    mask: Path,
    out: Path,
    *,
    image: str = "",
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
        mask: Mask of one image; it may be anywhere.
        out: The folder of the results.
        image: Name, path or id of the image of the mask, where the names do not tell; the ending may be left out.
        classes: Class names in index order; empty: those of ``splits.json``, or numbers.
        mask_values: Value in the mask -> class name.
        scribbles: 0 in the mask is not annotated, 1 is the first class.
        options: How images are packed.
        extend: Add new images to an archive that exists; a training on it can only be resumed if it stays the same.
        again: Nothing was trained on an archive that exists, so it is packed again if the annotated image has changed.
        progress: Show a progress bar if the output is a terminal.

    Raises:
        UserError: no image belongs to the mask, its values are no class indices, ``archive build`` refuses the folder, or
            the archive that a training began with has another mask.
    """
    for path, what in ((folder, "the folder of the images"), (mask, "the mask")):
        if not path.exists():
            raise UserError(f"{path}: {what} is not found; check its path")
    if mask.is_dir():
        raise UserError(
            f"{mask}: is a folder; name the file of one mask, or pack all with 'archive build --masks'"
        )
    names, values = tuple(classes), dict(mask_values or {})
    if scribbles and not names:
        raise UserError(
            "--scribbles needs the names of the classes; add --classes, the one with the value 1 first"
        )
    found, numbered = _first_plan(folder, names, values, mask)
    item = image_of_mask(found, mask, image)
    notes = list(found.notes)
    known = found.collections[item.dataset].classes
    if not names and not values and (not known or item.dataset in numbered):
        names = numbered_classes(mask)
        notes.append(
            f"{mask.name} has {len(names)} values, named {', '.join(names)}; name them with --classes, and add "
            "--scribbles if 0 means not annotated"
        )
    metadata = None
    if item.mask is None or item.mask.resolve() != mask.resolve():
        metadata = _annotation(out, item, mask)
    found = plan([folder], metadata=metadata, classes=names, mask_values=values, scribbles=scribbles)
    collection = found.collections[item.dataset]
    if names and collection.classes != names:
        raise UserError(
            f"--classes is {','.join(names)}, but splits.json of {item.dataset} names the classes "
            f"{','.join(collection.classes)}; leave --classes out"
        )
    archive = out / ARCHIVE_FILE
    warnings: tuple[str, ...] = ()
    skipped, waiting = found.skipped, _not_packed(found, archive)
    everything = extend or not archive.exists()
    # A training that goes on keeps its archive; the annotated image must still be the one in it.
    wanted = found if everything else replace(found, items=_one(found, item), skipped=())
    packed = build(wanted, archive, options or BuildOptions(), progress=progress)
    if again and _changed(packed, item):
        archive.unlink()
        packed = build(found, archive, options or BuildOptions(), progress=progress)
    _check_packed(packed, item, mask)
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
        item.id,
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
    folder: Path, names: tuple[str, ...], values: Mapping[int | str, str], mask: Path
) -> tuple[Plan, frozenset[str]]:
    """The images of a folder before the mask is added, and the collections whose classes are numbered.

    A folder in which other images have masks needs class names, one without masks refuses them.
    """
    try:
        return plan([folder]), frozenset()
    except UserError:
        if names or values:
            return plan([folder], classes=names, mask_values=values), frozenset()
        found = plan([folder], classes=numbered_classes(mask))
        return found, frozenset(found.collections)


def image_of_mask(found: Plan, mask: Path, image: str) -> Item:
    """The image that a mask belongs to: the given one, or that of its name.

    Raises:
        UserError: there is none, or there are several.
    """
    if any(item.path.resolve() == mask.resolve() for item in found.items):
        raise UserError(
            f"{mask}: is among the images, and would be packed as one; move it out of that folder"
        )
    names = {item.path.name for item in found.items}
    if image:
        same = _images_named(found, image)
        if not same:
            raise UserError(f"--image {image}: there is no such image{did_you_mean(image, names)}")
    else:
        given = [item for item in found.items if item.mask and item.mask.resolve() == mask.resolve()]
        paired, _ = pair(sorted(names), {mask.name: mask})
        same = given or [item for item in found.items if item.path.name in paired]
        same = same or [item for item in found.items if nfc(item.path.name) in _images_in(mask)]
        if not same:
            raise UserError(
                f"{mask}: no image has a matching name, such as {mask.stem}.tif; name its image with --image"
            )
    if len(same) > 1:
        paths = ", ".join(str(item.path) for item in same[:3]) + (", ..." if len(same) > 3 else "")
        raise UserError(
            f"{f'--image {image}' if image else mask}: several images have a matching name ({paths}); give --image the "
            "path of one"
        )
    return same[0]


def _images_named(found: Plan, image: str) -> list[Item]:
    """Images with this id or path, which may leave out leading folders and, if none has it with its ending, the ending."""
    parts = Path(nfc(image)).parts
    paths = {item.id: Path(nfc(str(item.path))) for item in found.items}
    same = [item for item in found.items if image == item.id or paths[item.id].parts[-len(parts) :] == parts]
    return same or [
        item for item in found.items if paths[item.id].with_suffix("").parts[-len(parts) :] == parts
    ]


def _images_in(mask: Path) -> frozenset[str]:
    """Names of the images that a file of shapes lists; empty for a mask of pixels."""
    if mask.suffix.lower() not in annotation_suffixes():
        return frozenset()
    try:
        shapes = read_annotations(mask)
    except Unreadable as error:
        raise UserError(f"{mask}: {error}") from None
    listed = (drawing.image for drawing in shapes.drawings if drawing.shapes) if shapes else ()
    return frozenset(PurePosixPath(nfc(name.replace("\\", "/"))).name for name in listed)


def numbered_classes(mask: Path) -> tuple[str, ...]:
    """``class 0``, ``class 1``, ... for a mask whose values are class indices without a gap.

    Raises:
        UserError: it has other values, or is a file of shapes.
    """
    if mask.suffix.lower() in annotation_suffixes() and (shapes := read_annotations(mask)):
        names = ",".join(shapes.labels)
        raise UserError(
            f"{mask}: it has shapes of {shapes.format} labelled {names}; name the classes with --classes "
            f"BACKGROUND,{names}, where BACKGROUND is the class of the pixels outside all shapes"
        )
    try:
        page = read_pages(mask)[0]
        if page.coloured or page.drawn_in_alpha:
            colours = list(page.colours())[:_MOST_CLASSES]
            raise UserError(
                f"{mask}: its classes are drawn in colours; name the class of each with {suggestion(colours, ())}, or "
                "'ignore' if not annotated"
            )
        found = sorted(float(value) for value in np.unique(page.values()))
    except Unreadable as error:
        raise UserError(f"{mask}: {error}") from None
    values = [value for value in found if value != IGNORE_INDEX]
    if len(values) == len(found) == 1:
        raise UserError(f"{mask}: has only the value {found[0]:g}; a mask must show at least two classes")
    if not 2 <= len(values) <= _MOST_CLASSES or values != list(range(len(values))):
        shown = ", ".join(f"{value:g}" for value in found[:_MOST_CLASSES])
        more = " ..." if len(found) > _MOST_CLASSES else ""
        keys = [int(value) for value in found if value == int(value)][:_MOST_CLASSES]
        raise UserError(
            f"{mask}: its values ({shown}{more}) are not class indices from 0; name the class of each with "
            f"{suggestion(keys, ())}, or 'ignore' if not annotated"
        )
    return tuple(f"class {value:g}" for value in values)


def _annotation(out: Path, item: Item, mask: Path) -> Path:
    """A copy of the mask, and the CSV file that gives it to its image."""
    copy = out / ANNOTATION / mask.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    with replacing(copy) as temporary:
        shutil.copyfile(mask, temporary)
    path = out / ANNOTATION_FILE
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [("file", "mask", "reference"), (item.path, f"{ANNOTATION}/{mask.name}", "yes")]
        )
    return path


def _one(found: Plan, item: Item) -> tuple[Item, ...]:
    return tuple(one for one in found.items if one.id == item.id)


def _reasons(packed: BuildResult, item: Item) -> list[str]:
    """Why an image was skipped."""
    return [one.reason for one in packed.skipped if one.path in (item.source, str(item.path))]


def _changed(packed: BuildResult, item: Item) -> bool:
    """Whether the archive had the image with other pixels or another mask before."""
    return any("is already in" in reason for reason in _reasons(packed, item))


def _check_packed(packed: BuildResult, item: Item, mask: Path) -> None:
    """UserError if the one annotated image could not be packed."""
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
