"""The annotated images of each repetition of each budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np

from pscl_hpc.archive import Archive, ImageRecord
from pscl_hpc.errors import UserError
from pscl_hpc.seeding import numpy_generator
from pscl_hpc.study.config import ALL, Budget, DatasetEntry, DrawnReferences, square_of

LEARNT_SPLITS = ("train", "")
"""Splits whose images may be trained on; empty: images without a split."""


@dataclass(frozen=True)
class Annotation:
    """The annotated images of one fine-tuning."""

    dataset: str
    budget: Budget
    references: tuple[str, ...]
    """Image ids in alphabetical order."""
    square: int
    """Side of the annotated square, 0 for whole images."""


class Draws:
    """The repetitions of one data set.

    Repetition r of budget k trains on the first k images of order r. An order begins with reference r. If references
    are listed, the others of the list follow in turn; drawn ones do not. Then come the other annotated training images
    in a random order of this repetition, first those that show a new class, as an annotator would choose. Repetitions
    with the same images are one. Images whose mask shows no learnt class are not drawn or added; if one is listed,
    fine-tuning refuses it.

    Raises:
        UserError: the data set has no references, a reference or the template is unknown or not a training image, or a
            budget is larger than the number of annotated training images.
    """

    def __init__(self, archive: Archive, entry: DatasetEntry) -> None:
        if entry.name not in archive.collections:
            archive.select(datasets=[entry.name])
        self.archive = archive
        self.dataset = entry.name
        self._settings = entry.references
        self._annotated = archive.select(datasets=[entry.name], splits=LEARNT_SPLITS, has_mask=True)
        self._known: dict[str, frozenset[int]] = {}
        self.references = self._find()
        if entry.template:
            self._check("template", entry.template)

    def annotations(self, budgets: Sequence[Budget]) -> list[Annotation]:
        """All repetitions of all budgets."""
        found: dict[Annotation, None] = {}
        for budget in budgets:
            square = square_of(budget)
            count = len(self._usable) if budget == ALL else 1 if square else int(budget)
            # Reading all masks for _usable takes time: only if the references are too few.
            if count > len(self.references) and count > len(self._usable):
                raise UserError(
                    f"budgets: {self.dataset} has {len(self._usable)} annotated training images, not {count}; "
                    "lower the budget, or write all"
                )
            for repetition in range(1 if budget == ALL else len(self.references)):
                chosen = tuple(sorted(self._order(repetition, count)))
                found[Annotation(self.dataset, budget, chosen, square)] = None
        return list(found)

    def _find(self) -> tuple[str, ...]:
        names = [record.id for record in self._annotated]
        if isinstance(self._settings, DrawnReferences):
            random = numpy_generator(self._settings.seed, "references", self.dataset)
            order = (names[place] for place in random.permutation(len(names)))
            drawn = tuple(islice(filter(self._learnt, order), self._settings.count))
            if len(drawn) < self._settings.count:
                raise UserError(
                    f"datasets: {self.dataset} has {len(drawn)} annotated training images, so {self._settings.count} "
                    "references cannot be drawn; lower references.count"
                )
            return drawn
        listed = self._settings
        if listed is None:
            listed = self.archive.collections[self.dataset].references
        if not listed:
            raise UserError(
                f"datasets: {self.dataset} recommends no references; list some under references, or draw them with "
                "references: {count: 5}"
            )
        for name in listed:
            self._check("reference", name)
        return tuple(dict.fromkeys(listed))

    def _check(self, what: str, name: str) -> None:
        """Refuse all but annotated training images of this data set."""
        record = self.archive.find(name)
        if record not in self._annotated:
            raise UserError(f"datasets: the {what} {name} of {self.dataset} {_fault(record, self.dataset)}")

    def _order(self, repetition: int, count: int) -> list[str]:
        """The first ``count`` images of an order."""
        order = [*self.references[repetition:], *self.references[:repetition]]
        seed = 0
        if isinstance(self._settings, DrawnReferences):
            order, seed = order[:1], self._settings.seed
        if len(order) >= count:
            return order[:count]
        random = numpy_generator(seed, "further references", self.dataset, repetition)
        rest = [self._annotated[place].id for place in random.permutation(len(self._annotated))]
        rest = [name for name in rest if name not in order and name in self._usable]
        seen = self._background.union(*(self._learnt(name) for name in order))
        for name in rest:
            if self._learnt(name) - seen:
                seen |= self._learnt(name)
                order.append(name)
        return [*order, *(name for name in rest if name not in order)][:count]

    @cached_property
    def _usable(self) -> frozenset[str]:
        """The references and every annotated training image that shows a learnt class."""
        return frozenset(self.references).union(
            record.id for record in self._annotated if self._learnt(record.id)
        )

    @cached_property
    def _background(self) -> frozenset[int]:
        return frozenset({self.archive.collections[self.dataset].background})

    def _learnt(self, name: str) -> frozenset[int]:
        """The learnt classes that an image shows."""
        if name not in self._known:
            collection = self.archive.collections[self.dataset]
            shown = frozenset(np.unique(self.archive.read_mask(self.archive.find(name).index)).tolist())
            self._known[name] = shown & set(range(len(collection.classes))) - set(collection.ignore_classes)
        return self._known[name]


def _fault(record: ImageRecord, dataset: str) -> str:
    if record.dataset != dataset:
        return f"belongs to {record.dataset}; name an image of {dataset}"
    if not record.has_mask:
        return "has no mask; name an annotated image"
    return f"is in the split '{record.split}'; name a training image"
