"""The masks that a call names: their images, and the classes that their values stand for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from pscl_hpc.archive.format import IGNORE_INDEX
from pscl_hpc.archive.ingest.annotations import annotation_suffixes, read_annotations
from pscl_hpc.archive.ingest.errors import Unreadable
from pscl_hpc.archive.ingest.items import Item
from pscl_hpc.archive.ingest.mask_pixels import read_pages
from pscl_hpc.archive.ingest.mask_values import IGNORE, suggestion
from pscl_hpc.archive.ingest.pairing import pair
from pscl_hpc.archive.ingest.sources import Plan
from pscl_hpc.errors import UserError, did_you_mean
from pscl_hpc.files import nfc
from pscl_hpc.segmentation.palette import Rgb, class_colours, hex_colour

_MOST_CLASSES = 12
"""Classes that are named by number; more values are hardly class indices."""
TEMPLATE_EMPTY: Rgb = (255, 255, 255)
"""Colour of pixels that are not annotated in the template."""


Annotated = tuple[Path, Item]
"""A mask and its image."""


def images_of_masks(found: Plan, masks: Sequence[Path], images: Sequence[str]) -> tuple[Annotated, ...]:
    """The images of masks, all of one dataset. A file of shapes may be the mask of several.

    Raises:
        UserError: an image is not found, is not clear or is given twice, or they belong to several datasets.
    """
    if images and len(images) != len(masks):
        raise UserError(
            f"--image is given {_times(images)} and --mask {_times(masks)}; give one --image for each --mask, in the same "
            "order, or none"
        )
    annotated: list[Annotated] = []
    for mask, image in zip(masks, images or [""] * len(masks), strict=True):
        for item in images_of_mask(found, mask, image):
            for other, before in annotated:
                if item.id == before.id:
                    raise UserError(
                        f"{mask}: {item.path} has the mask {other} already; give one mask of each image"
                    )
            annotated.append((mask, item))
    first, one = annotated[0]
    for mask, item in annotated:
        if item.dataset != one.dataset:
            raise UserError(
                f"{mask}: its image is in {item.dataset}, that of {first} in {one.dataset}; annotate images of one dataset"
            )
    return tuple(annotated)


def _times(given: Sequence[object]) -> str:
    return "once" if len(given) == 1 else f"{len(given)} times"


def images_of_mask(found: Plan, mask: Path, image: str) -> list[Item]:
    """The image that a mask belongs to: the given one, or that of its name; all that a file of shapes lists.

    Raises:
        UserError: there is none, or a name is that of several.
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
        if given := [item for item in found.items if item.mask and item.mask.resolve() == mask.resolve()]:
            return given
        paired, _ = pair(sorted(names), {mask.name: mask})
        same = [item for item in found.items if item.path.name in paired]
        if not same:
            listed = _images_in(mask)
            same = [item for item in found.items if nfc(item.path.name) in listed]
            if same and len({item.path.name for item in same}) == len(same):
                return same
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
    return same


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


def numbered_classes(masks: Sequence[Path]) -> tuple[str, ...]:
    """``class 0``, ``class 1``, ... for masks whose values are together class indices without a gap.

    Raises:
        UserError: they have other values, or are files of shapes.
    """
    found = sorted(set().union(*map(_values, masks)))
    told = masks[0] if len(masks) == 1 else ", ".join(str(mask) for mask in masks)
    values = [value for value in found if value != IGNORE_INDEX]
    if not values:
        raise UserError(
            f"{told}: has only the value {IGNORE_INDEX}, so nothing is annotated; paint the classes"
        )
    if len(values) == len(found) == 1:
        raise UserError(f"{told}: has only the value {found[0]:g}; a mask must show at least two classes")
    if not 2 <= len(values) <= _MOST_CLASSES or values != list(range(len(values))):
        shown = ", ".join(f"{value:g}" for value in found[:_MOST_CLASSES])
        more = " ..." if len(found) > _MOST_CLASSES else ""
        keys = [int(value) for value in found if value == int(value)][:_MOST_CLASSES]
        raise UserError(
            f"{told}: the values ({shown}{more}) are not class indices from 0; name the class of each with "
            f"{suggestion(keys, ())}, or 'ignore' if not annotated"
        )
    return tuple(f"class {value:g}" for value in values)


def template_colours(masks: Sequence[Path], classes: Sequence[str]) -> dict[int | str, str]:
    """Colour -> class of masks that a paint program has saved in the colours of the template; empty for others.

    Programs without palettes turn the indices of the template into its colours, and 255, not annotated, into white.

    Args:
        masks: Files.
        classes: Class names in index order; empty: they are numbered.
    """
    names = classes or [f"class {place}" for place in range(_MOST_CLASSES)]
    palette = {hex_colour(rgb): name for rgb, name in zip(class_colours(len(names)), names, strict=True)}
    found: set[str] = set()
    for mask in masks:
        if mask.suffix.lower() in annotation_suffixes():
            return {}
        try:
            page = read_pages(mask)[0]
            if not page.coloured:
                return {}
            found.update(page.colours())
        except (Unreadable, OSError):
            return {}  # packing reports it
    if not found <= {*palette, hex_colour(TEMPLATE_EMPTY)}:
        return {}
    return {
        **{colour: name for colour, name in palette.items() if colour in found},
        hex_colour(TEMPLATE_EMPTY): IGNORE,
    }


def _values(mask: Path) -> set[float]:
    """The values of a mask of pixels; UserError if it has colours, or is a file of shapes."""
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
        return {float(value) for value in np.unique(page.values())}
    except Unreadable as error:
        raise UserError(f"{mask}: {error}") from None
