"""The masks of image files, found by their names in another folder, as class indices of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pscl_hpc.archive import IGNORE_INDEX, Collection
from pscl_hpc.archive.ingest.annotations import Drawing
from pscl_hpc.archive.ingest.drawings import find_drawings
from pscl_hpc.archive.ingest.folders import images_under
from pscl_hpc.archive.ingest.mask_values import Key, by_colour, class_indices, scribble_names
from pscl_hpc.archive.ingest.masks import check_colours, check_first_class, check_palettes, read_mask
from pscl_hpc.archive.ingest.pairing import pair
from pscl_hpc.errors import UserError
from pscl_hpc.segmentation.classes import ClassList


@dataclass(frozen=True)
class InputMasks:
    """Masks of image files."""

    files: Mapping[str, tuple[Path, Drawing | None]]
    """Image file -> its mask; or the annotation file and the shapes on the image."""
    collection: Collection
    values: Mapping[Key, int] | None
    """Value or colour in the masks -> class index; None if the values are the class indices."""
    scribbles: bool
    notes: tuple[str, ...]

    @classmethod
    def find(
        cls,
        place: Path,
        images: Sequence[str],
        classes: ClassList,
        *,
        mask_values: Mapping[Key, str] | None = None,
        scribbles: bool = False,
    ) -> InputMasks:
        """The masks of these image files in a folder, or in a file of shapes.

        Args:
            place: Folder of masks, paired with the images by their names as in ``archive build``; or a file of shapes.
            images: Image files.
            classes: The classes of the run.
            mask_values: Value or colour in the masks -> class name or ``ignore``.
            scribbles: 0 in the masks, and what is outside all shapes, is not annotated; 1 is the first class.

        Raises:
            UserError: ``place`` does not exist, no image has a mask in it, several images have one name, or the meaning of
                the values is not clear.
        """
        if not place.exists():
            raise UserError(f"--masks {place}: is not found; name the folder of the masks")
        by_name: dict[str, str] = {}
        for image in images:
            first = by_name.setdefault(Path(image).name, image)
            if first != image:
                raise UserError(
                    f"--masks {place}: {first} and {image} have the same name; measure one folder at a time"
                )
        collection = Collection(place.name or "masks", classes.names, classes.background, classes.ignored)
        found = {path.name: path for path in images_under(place)} if place.is_dir() else {}
        paired, _ = pair(list(by_name), found)
        files: dict[str, tuple[Path, Drawing | None]] = {
            by_name[name]: (some[-1], None) for name, some in paired.items()
        }
        left = {name: Path(image) for name, image in by_name.items() if image not in files}
        drawings = find_drawings(None, [place], left)
        files |= {by_name[name]: drawn for name, drawn in drawings.of_image.items()}
        if not files:
            raise UserError(
                f"--masks {place}: no image has a mask there; give 0007.tif the mask 0007.png or 0007_mask.png"
            )
        names = dict(mask_values or {}) or (scribble_names(classes.names) if scribbles else {})
        pictures = [path for path, drawing in files.values() if drawing is None]
        if not by_colour(names):
            check_palettes(pictures)
            check_colours(pictures, classes.names)
        if not names:
            check_first_class(pictures, collection)
        some = len(files) < len(images)
        notes = [f"{len(files)} of {len(images)} images have a mask in {place}"] if some else []
        notes += drawings.notes
        notes += [f"skipped {one}" for one in map(str, drawings.unread)]
        return cls(files, collection, class_indices(names, collection) or None, scribbles, tuple(notes))

    def read(self, image: str, height: int, width: int, cropped: int) -> npt.NDArray[np.uint8] | None:
        """(height, width) class indices of an image, 255 in the ``cropped`` rows at its bottom edge; None without a mask.

        Raises:
            Unreadable: the mask is damaged, has another size, or unknown values, colours or labels.
        """
        if image not in self.files:
            return None
        path, drawing = self.files[image]
        rows = height - cropped
        mask = read_mask(
            path,
            self.collection,
            height,
            width,
            rows,
            self.values if drawing is None else None,
            drawing=drawing,
            scribbles=self.scribbles,
        )
        return np.concatenate([mask, np.full((cropped, width), IGNORE_INDEX, np.uint8)])
