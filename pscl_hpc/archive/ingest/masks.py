"""Class indices of an image from its mask: an image of values or colours, or shapes that were drawn in another program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pscl_hpc.archive.format import IGNORE_INDEX, Collection, Pixels, check_mask, mask_values
from pscl_hpc.archive.ingest.annotations import Drawing, fill
from pscl_hpc.archive.ingest.errors import Unreadable
from pscl_hpc.archive.ingest.mask_pixels import (
    MaskPage,
    colour_code,
    colour_name,
    has_colours,
    read_pages,
    translated,
    used_palette,
)
from pscl_hpc.archive.ingest.mask_values import IGNORE, OTHER, TRANSPARENT, Key, by_colour, suggestion
from pscl_hpc.archive.ingest.page import Page
from pscl_hpc.archive.options import ALL_PAGES
from pscl_hpc.errors import UserError

_MANY_COLOURS = 32
"""From here on a mask was saved with smooth edges or lossy compression."""


def read_mask(
    path: Path,
    collection: Collection,
    height: int,
    width: int,
    cropped: int,
    values: Mapping[Key, int] | None = None,
    *,
    drawing: Drawing | None = None,
    scribbles: bool = False,
    page: Page | None = None,
    position: tuple[int, int] = (0, 1),
    chosen: int = ALL_PAGES,
) -> npt.NDArray[np.uint8]:
    """(cropped, width) class indices of an image.

    Args:
        height, width: size of the image file.
        cropped: rows left without the information bar; the mask may have either height.
        values: class index (255 = not annotated) of each value or colour in the file; None if the values are the class
            indices.
        drawing: the shapes on the image, if ``path`` is a file of shapes.
        scribbles: pixels outside the shapes are not annotated rather than background.
        page: the image; it chooses the page of a mask that has as many pages as the file of the image.
        position: number of the image among the packed pages of its file, and their count.
        chosen: page of the mask if it has several but the image one, as given by ``--page``.

    Raises:
        Unreadable: the file is damaged or has another size or unknown values, colours or labels.
    """
    shown = f"{path.parent.name}/{path.name}"
    if drawing is not None:
        rows = cropped if drawing.size == (cropped, width) else height
        return fill(drawing, collection, rows, width, shown, scribbles=scribbles)[:cropped]
    found = _page(read_pages(path), page, position, chosen, shown)
    if found.pixels.shape[:2] not in ((height, width), (cropped, width)):
        size = " x ".join(map(str, found.pixels.shape[:2]))
        turned = found.pixels.shape[:2] == (width, height)
        fix = (
            "rotate the mask as viewers show the image, which its orientation tag may turn"
            if turned
            else "export both at one size, or use --crop-bottom if an information bar was cut"
        )
        raise Unreadable(f"the mask {shown} has {size} pixels but the image {height} x {width}; {fix}")
    if values is not None:
        return _translate(found, values, shown)[:cropped]
    mask = found.values()[:cropped]
    if mask.dtype.kind in "ui":
        _check_indices(mask, collection.classes, shown)
    try:
        check_mask(mask, cropped, width, collection)
    except ValueError as error:
        if mask.dtype.kind not in "ui":
            raise Unreadable(f"{error} ({shown}); save it as 8-bit class indices") from error
        raise Unreadable(f"{error} ({shown}); {_unknown_values(mask, collection.classes)}") from error
    return mask.astype(np.uint8)


def check_equal(paths: Sequence[Path]) -> None:
    """Check that several masks of one image are equal.

    Raises:
        Unreadable: they differ, or one of them cannot be read.
    """
    names = " and ".join(f"{path.parent.name}/{path.name}" for path in paths)
    try:
        first, *others = (read_pages(path)[0].values() for path in paths)
    except (Unreadable, OSError) as error:
        raise Unreadable(f"it has the masks {names}, and {error}; keep one of them") from error
    if not all(np.array_equal(first, other) for other in others):
        raise Unreadable(f"its masks {names} differ; keep one of them")


def check_palettes(paths: Sequence[Path]) -> None:
    """Check that the palette masks of a collection give each index one colour and each colour one index.

    Programs that make a new palette for every file number the same colours differently.

    Raises:
        UserError: two masks differ. Masks that cannot be read are ignored, because packing reports them.
    """
    colour_of: dict[int, tuple[bytes, Path]] = {}
    index_of: dict[bytes, tuple[int, Path]] = {}
    for path in paths:
        try:
            used = used_palette(path)
        except (Unreadable, OSError):
            continue
        for index, colour in used.items():
            known, first = colour_of.setdefault(index, (colour, path))
            other = index
            if known == colour and list(used.values()).count(colour) == 1:
                other, first = index_of.setdefault(colour, (index, path))
            if known != colour or other != index:
                colours = sorted({f"#{one.hex()}" for one in (*used.values(), *index_of)})
                raise UserError(
                    f"the masks {first} and {path} have different palettes (index {index} or its colour "
                    f"#{colour.hex()} means another class in the first); give the class of each colour with "
                    f"{suggestion(colours, ())}, or save the masks as grey images of class indices"
                )


def check_first_class(paths: Sequence[Path], collection: Collection) -> None:
    """Check that a mask of a collection has the value 0, unless class 0 is ignored: else they may count from 1.

    Raises:
        UserError: all values are class indices, but none is 0. Masks that cannot be read are ignored.
    """
    classes = collection.classes
    if 0 in collection.ignore_classes or len(classes) < 2:
        return
    found: set[int] = set()
    for path in paths:
        try:
            pages = [page.values() for page in read_pages(path)]
        except (Unreadable, OSError):
            return  # packing reports it
        for mask in pages:
            if mask.dtype.kind not in "ui":
                return
            found.update(mask_values(mask))
        # Other values are refused when the mask is packed, with the values of that mask.
        if not found <= {*range(1, len(classes)), IGNORE_INDEX}:
            return
    values: list[Key] = sorted(found - {IGNORE_INDEX})
    if values:
        counted: list[Key] = list(range(1, len(classes) + 1))
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        raise UserError(
            f"{paths[0]}{more}: no mask has the value 0 ({classes[0]}), so the masks may count the classes from 1; add "
            f"{suggestion(counted, classes)} if they do, or "
            f"{suggestion(values, [classes[int(value)] for value in values])} if the values are class indices from 0"
        )


def check_colours(paths: Sequence[Path], classes: Sequence[str]) -> None:
    """Check that no mask of a collection needs ``--mask-values`` because its classes are colours or transparency.

    Raises:
        UserError: with the line to type, which has the colours of all masks. Masks that cannot be read are ignored.
    """
    counts: dict[str, int] = {}
    first: Path | None = None
    problem: Unreadable | None = None
    for path in paths:
        try:
            if not has_colours(path):
                continue
            page = read_pages(path)[0]
            if page.coloured or page.drawn_in_alpha:
                first = first or path
            for colour, count in page.colours().items():
                counts[colour] = counts.get(colour, 0) + count
        except Unreadable as error:
            problem = problem or error
        except OSError:
            continue
    if first is None:
        return
    if not counts:
        raise UserError(f"{first}: {problem}")
    colours = sorted(counts, key=lambda colour: (colour != TRANSPARENT, colour))
    if len(counts) > _MANY_COLOURS:
        colours = sorted(sorted(counts, key=lambda colour: -counts[colour])[: max(2, len(classes))])
        raise UserError(
            f"{first} is a mask in colours, and the masks have {len(counts)} colours, as after smoothing or lossy "
            f"compression; save them with hard edges as PNG, and give the class of each colour, such as "
            f"{suggestion(colours, ())}"
        )
    # Which colour is which is a guess only for two: black or transparent is the background.
    names = classes if len(colours) == 2 else ()
    choices = f"; the classes are {', '.join(classes)}" if classes else ""
    raise UserError(
        f"{first} is a mask in colours; give the class of each with {suggestion(colours, names)}{choices}, or '{IGNORE}' "
        "if not annotated"
    )


def _page(
    pages: Sequence[MaskPage], page: Page | None, position: tuple[int, int], chosen: int, shown: str
) -> MaskPage:
    """The page of a mask file that belongs to a page of its image."""
    place, packed = position
    if len(pages) == packed:
        return pages[place]
    if page is not None and len(pages) == page.total:
        return pages[page.number]
    if packed == 1 and 0 <= chosen < len(pages):
        return pages[chosen]
    count = f"{len(pages)} pages" if len(pages) > 1 else "1 page"
    raise Unreadable(
        f"the mask {shown} has {count} but the image {packed}; save one mask page for each page of the image, or "
        "choose a page with --page"
    )


def _translate(page: MaskPage, values: Mapping[Key, int], shown: str) -> npt.NDArray[np.uint8]:
    """The class indices (h, w) of a mask whose values or colours the user has named."""
    colours = by_colour(values)
    codes = page.codes() if colours else page.values()
    if codes.dtype.kind not in "ui":
        raise Unreadable(f"the mask {shown} has {codes.dtype} values; save it as 8-bit class indices")
    of_code = colour_code if colours else int
    known = {of_code(key): index for key, index in values.items() if key != OTHER}
    mask, missing = translated(codes, known, values.get(OTHER))
    if missing:
        names = [colour_name(code) if colours else str(code) for code in missing]
        more = f" and {len(names) - 3} others" if len(names) > 3 else ""
        pixels = int(np.isin(codes, missing).sum())
        raise Unreadable(
            f"the mask {shown} has the {'colour' if colours else 'value'} {', '.join(names[:3])}{more} ({pixels} pixels), "
            f"which --mask-values does not list; add {names[0]}=CLASS, or {names[0]}={IGNORE} if it means not annotated"
            + (
                f"; so many come from smooth edges or lossy compression, which {OTHER}={IGNORE} leaves out"
                if len(names) > _MANY_COLOURS
                else ""
            )
        )
    return mask


def _check_indices(mask: Pixels, classes: Sequence[str], shown: str) -> None:
    """Unreadable for values that are grey levels rather than class indices.

    0 and 255 are a painted black-and-white mask far more often than an index mask of which only one class is annotated.
    """
    found = mask_values(mask)
    even = np.linspace(0, IGNORE_INDEX, max(2, len(classes)))
    scaled = len(found) == len(classes) > 2 and np.allclose(found, even, atol=1)
    if not (scaled or (IGNORE_INDEX in found and set(found) <= {0, IGNORE_INDEX})):
        return
    if len(found) == 1:
        raise Unreadable(
            f"the mask {shown} has only the value {found[0]}, so nothing seems to be annotated; paint the classes, or give "
            f"--mask-values {found[0]}=CLASS if it is a class"
        )
    levels: list[Key] = list(found) if scaled else [0, IGNORE_INDEX]
    named = [*levels[:-1]] if scaled else list(range(len(classes)))
    listed = suggestion(named, classes)
    values = f"values {', '.join(map(str, found[:-1]))} and {found[-1]}"
    raise Unreadable(
        f"the mask {shown} has only the {values}, so it is not clear what {IGNORE_INDEX} means; give the classes of the "
        f"values with {suggestion(levels, classes)}, or {listed},{IGNORE_INDEX}={IGNORE} if {IGNORE_INDEX} means not "
        "annotated"
    )


def _unknown_values(mask: Pixels, classes: Sequence[str]) -> str:
    """How to mend a mask with values that are no class indices."""
    found: list[Key] = [value for value in mask_values(mask) if value != IGNORE_INDEX]
    if found == list(range(1, len(classes) + 1)):
        return f"its values seem to count the classes from 1; then add {suggestion(found, classes)}"
    if found == list(range(len(classes) + 1)):
        return "if 0 means not annotated and 1 is the first class, add --scribbles; else add the class to the list"
    if set(found) - {-1} <= set(range(len(classes))):
        return f"if -1 means not annotated, add {suggestion(list(range(len(classes))), classes)},-1={IGNORE}"
    if len(found) == len(classes):
        return f"give the classes of the values with {suggestion(found, classes)}"
    numbered = ""
    if len(found) > len(classes) >= 2:
        numbered = f"; if it numbers the particles, add --mask-values 0={classes[0]},{OTHER}={classes[1]}"
    return (
        "correct the mask, add the class to splits.json or --classes, or give the classes with --mask-values"
        + numbered
    )
