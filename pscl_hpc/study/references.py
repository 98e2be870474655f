"""Which annotated images each repetition of each budget trains on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pscl_hpc.archive import Archive, ImageRecord
from pscl_hpc.config.study import ALL, Budget, DatasetEntry, DrawnReferences, square_of
from pscl_hpc.errors import UserError
from pscl_hpc.seeding import numpy_generator

LEARNT_SPLITS = ("train", "")
"""Splits whose images may be trained on; the empty one is that of images without a split."""


@dataclass(frozen=True)
class Annotation:
    """What one fine-tuning has annotated."""

    dataset: str
    budget: Budget
    references: tuple[str, ...]
    """Image ids in alphabetical order."""
    square: int
    """Side of the annotated square, 0 for whole images."""


class Draws:
    """The repetitions of one data set.

    Repetition r of budget k trains on the first k images of order r. An order begins with reference r and goes on with
    the other listed references in turn; then come the other annotated training images in an order of their own, at
    first those that show a class not seen before, as somebody who annotates would choose. Repetitions with the same
    images are one.

    Raises:
        UserError: the data set has no references, one or the template is unknown or may not be learnt from, or a budget
            is larger than the number of annotated training images.
    """

    def __init__(self, archive: Archive, entry: DatasetEntry) -> None:
        if entry.name not in archive.collections:
            archive.select(datasets=[entry.name])
        self.archive = archive
        self.dataset = entry.name
        self._settings = entry.references
        self._annotated = archive.select(datasets=[entry.name], splits=LEARNT_SPLITS, has_mask=True)
        self.references = self._find()
        if entry.template:
            self._check("template", entry.template)

    def annotations(self, budgets: Sequence[Budget]) -> list[Annotation]:
        """All repetitions of all budgets."""
        found: dict[Annotation, None] = {}
        for budget in budgets:
            square = square_of(budget)
            count = len(self._annotated) if budget == ALL else 1 if square else int(budget)
            if count > len(self._annotated):
                raise UserError(
                    f"budgets: {self.dataset} has {len(self._annotated)} annotated training images, not {count}; "
                    "lower the budget, or write all"
                )
            for repetition in range(1 if budget == ALL else len(self.references)):
                chosen = tuple(sorted(self._order(repetition, count)))
                found[Annotation(self.dataset, budget, chosen, square)] = None
        return list(found)

    def _find(self) -> tuple[str, ...]:
        names = [record.id for record in self._annotated]
        if isinstance(self._settings, DrawnReferences):
            if self._settings.count > len(names):
                raise UserError(
                    f"datasets: {self.dataset} has {len(names)} annotated training images, so {self._settings.count} "
                    "references cannot be drawn; lower references.count"
                )
            random = numpy_generator(self._settings.seed, "references", self.dataset)
            return tuple(names[place] for place in random.permutation(len(names))[: self._settings.count])
        listed = self._settings
        if listed is None:
            listed = self.archive.collections[self.dataset].references
        if not listed:
            raise UserError(
                f"datasets: {self.dataset} recommends no references; name some under references, or draw them with "
                "references: {count: 5}"
            )
        for name in listed:
            self._check("reference", name)
        return tuple(dict.fromkeys(listed))

    def _check(self, what: str, name: str) -> None:
        """Refuse what is no annotated training image of this data set."""
        record = self.archive.find(name)
        if record not in self._annotated:
            raise UserError(f"datasets: the {what} {name} of {self.dataset} {_fault(record, self.dataset)}")

    def _order(self, repetition: int, count: int) -> list[str]:
        """The first ``count`` images of an order."""
        first = self.references[repetition]
        order = [first]
        drawn = isinstance(self._settings, DrawnReferences)
        if not drawn:
            order = [*self.references[repetition:], *self.references[:repetition]]
        if len(order) >= count:
            return order[:count]
        seed = self._settings.seed if isinstance(self._settings, DrawnReferences) else 0
        random = numpy_generator(seed, "further references", self.dataset, repetition)
        rest = [self._annotated[place].id for place in random.permutation(len(self._annotated))]
        rest = [name for name in rest if name not in order]
        seen = set().union(*(self._classes[name] for name in order))
        for name in rest:
            if self._classes[name] - seen:
                seen |= self._classes[name]
                order.append(name)
        taken = set(order)
        order += [name for name in rest if name not in taken]
        return order[:count]

    @cached_property
    def _classes(self) -> dict[str, set[int]]:
        """Foreground classes that each annotated image shows."""
        collection = self.archive.collections[self.dataset]
        known = set(range(len(collection.classes))) - {collection.background, *collection.ignore_classes}
        return {
            record.id: known & set(np.unique(self.archive.read_mask(record.index)).tolist())
            for record in self._annotated
        }


def _fault(record: ImageRecord, dataset: str) -> str:
    if record.dataset != dataset:
        return f"is of {record.dataset}; name images of one data set"
    if not record.has_mask:
        return "has no mask; name an annotated image"
    return f"is in the split '{record.split}', which is not for training; name a training image"
