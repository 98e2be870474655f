"""Which images of an archive to annotate, from their pixels alone. Masks are never read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pscl_hpc.archive import Archive, ImageRecord
from pscl_hpc.errors import UserError, did_you_mean
from pscl_hpc.suggestion.coverage import Nearness, choose, measure
from pscl_hpc.suggestion.features import DenseFeatures
from pscl_hpc.suggestion.patches import ImagePatches, Vectors, read_patches
from pscl_hpc.suggestion.textures import find_textures, shares

APART = 0.5
"""An image of which less than this share is covered looks different from the chosen ones."""
_CANDIDATES = 1000
"""At most so many images, evenly spaced, are compared."""
_NAMED = 8
"""At most so many images are named in a warning."""
_MOST = 24
"""Images that are tried together to find out how many leave no image that looks different."""


@dataclass(frozen=True)
class Suggestion:
    """The images to annotate, and what they cover.

    Shape legend: I candidates, K textures.
    """

    features: str
    """What patches were compared by."""
    available: int
    """Images to choose from; of many, some are compared."""
    images: tuple[ImagePatches, ...]
    """The candidates."""
    nearness: Nearness
    chosen: tuple[int, ...]
    """Positions of the suggested images in ``images``, in the order in which to annotate them."""
    enough: tuple[int, ...]
    """The fewest suggestions from which no image looks different, in their order; empty if more than 24 are needed."""
    textures: Vectors
    """Centres of the textures, the most frequent first, (K, d)."""
    shares: npt.NDArray[np.float64]
    """Share of each texture in each image, (I, K)."""

    @property
    def covered(self) -> npt.NDArray[np.float64]:
        """Share of each image that the chosen ones cover, (I,)."""
        return self.nearness.covered(self.chosen)

    @property
    def different(self) -> tuple[int, ...]:
        """Images of which the chosen ones cover less than half, the least covered first."""
        covered = self.covered
        return tuple(int(place) for place in np.argsort(covered, kind="stable") if covered[place] < APART)

    def alone(self, place: int) -> float:
        """Share of all textures that an image covers if only it is annotated."""
        return self.nearness.textures_covered([place])

    def id(self, place: int) -> str:
        """Id of an image."""
        return self.images[place].record.id

    def lines(self) -> list[str]:
        """The suggestion in words."""
        average = np.mean([self.alone(place) for place in range(len(self.images))])
        some = "" if len(self.images) == self.available else f"{len(self.images)} of "
        found = [f"{some}{_count(self.available, 'image')} compared by {self.features}"]
        for number, place in enumerate(self.chosen):
            so_far = self.chosen[: number + 1]
            share, patches = self.nearness.textures_covered(so_far), self.nearness.covered(so_far).mean()
            what = "with those above " if number else ""
            rest = "" if number else f"; an image on average {average:.0%} of the textures"
            found.append(
                f"{number + 1}. {self.id(place)}: {what}covers {share:.0%} of the textures and {patches:.0%} of the "
                f"patches of all images{rest}"
            )
        return found

    def warnings(self) -> list[str]:
        """What no suggested image shows, in words, and how many suggestions show it."""
        if not (different := self.looks_different()):
            return []
        if self.enough:
            more = ", ".join(self.id(place) for place in self.enough[len(self.chosen) :])
            fix = f"--count {len(self.enough)} covers at least half of every image and adds {more}"
        else:
            fix = f"even {_MOST} images do not cover them all; choose images of one kind with --dataset"
        return [f"{different}; {fix}"]

    def looks_different(self) -> str:
        """What no suggested image shows, in words; empty if there is nothing."""
        if not (different := self.different):
            return ""
        names = ", ".join(self.id(place) for place in different[:_NAMED])
        names += f" and {len(different) - _NAMED} more" if len(different) > _NAMED else ""
        looks = "1 image looks" if len(different) == 1 else f"{len(different)} images look"
        return f"{looks} different, with less than half of the patches covered: {names}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        covered = self.covered
        return {
            "features": self.features,
            "images": self.available,
            "compared": len(self.images),
            "suggested": [
                {
                    "image": self.id(place),
                    "covers_alone": round(self.alone(place), 4),
                    "covered_so_far": round(self.nearness.textures_covered(self.chosen[: number + 1]), 4),
                }
                for number, place in enumerate(self.chosen)
            ],
            "candidates": [
                {
                    "image": self.id(place),
                    "covers_alone": round(self.alone(place), 4),
                    "covered": round(float(covered[place]), 4),
                    "textures": [round(float(share), 4) for share in self.shares[place]],
                }
                for place in range(len(self.images))
            ],
            "different": [self.id(place) for place in self.different],
            "enough": [self.id(place) for place in self.enough],
        }


def suggest(
    archive: Archive,
    features: DenseFeatures,
    *,
    datasets: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    count: int = 1,
    seed: int = 0,
    progress: bool = False,
) -> Suggestion:
    """Propose images whose patches resemble most of the archive.

    Args:
        archive: An open archive.
        features: What patches are compared by.
        datasets: Collections; by default all.
        splits: Splits; by default all. The empty name means images without a split.
        count: Images to propose.
        seed: Of the sampled patches and the clusters.
        progress: Show a progress bar when the output is a terminal.

    Raises:
        UserError: there is no such image, or fewer than ``count``.
    """
    records = _available(archive, datasets, splits, count)
    step = np.linspace(0, len(records) - 1, min(max(count, _CANDIDATES), len(records))).round().astype(int)
    images = read_patches(archive, [records[place] for place in step], features, progress=progress)
    nearness = measure(images, seed)
    order = choose(nearness, max(count, _MOST))
    numbers = range(1, len(order) + 1)
    enough = next((number for number in numbers if (nearness.covered(order[:number]) >= APART).all()), 0)
    textures = find_textures(images, seed)
    return Suggestion(
        features.name,
        len(records),
        tuple(images),
        nearness,
        tuple(order[:count]),
        tuple(order[:enough]),
        textures,
        shares(images, textures),
    )


def _available(
    archive: Archive, datasets: Sequence[str] | None, splits: Sequence[str] | None, count: int
) -> Sequence[ImageRecord]:
    records = archive.select(datasets=datasets, splits=splits)
    where = f"{archive.path}{' of ' + ', '.join(datasets) if datasets else ''}"
    if not records:
        known = sorted({record.split for record in archive.select(datasets=datasets)} - {""})
        wrong = [name for name in splits or () if name and name not in known]
        raise UserError(
            f"{where}: no image is in the splits {list(splits or ())}"
            f"{did_you_mean(wrong[0], known) if wrong else '; choose other splits with --splits'}"
        )
    if not 1 <= count <= len(records):
        raise UserError(f"--count is {count}, but {where} has {len(records)} images to choose from")
    return records


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
