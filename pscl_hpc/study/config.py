"""The configuration of a study: methods x data sets x annotation budgets x references x seeds.

A study file contains the grid and the keys that its runs have in common. It may name pretraining and fine-tuning
configurations (``pretrain: FILE`` or ``extends: FILE``), relative to itself. They are read with it: a loaded study
needs no other file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from pscl_hpc.config import (
    Count,
    Strict,
    apply_overrides,
    check_folder,
    first_problem,
    merge_trees,
    read_tree,
)
from pscl_hpc.errors import UserError, did_you_mean

NO_PRETRAINING = "none"
"""Value of ``pretrain`` for supervised training from random weights."""
ALL = "all"
"""The budget of all annotated training images."""
_SQUARE = "square-"

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]


def _check_budget(value: Any) -> Any:
    # One message that names all kinds of budget, not one for each type of a union.
    if isinstance(value, str) and re.fullmatch(rf"{ALL}|{_SQUARE}[1-9][0-9]*", value):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise ValueError(
        f"{value!r} is not a budget; write a number of images, {ALL}, or {_SQUARE}N for one square of N pixels, for "
        f"example {_SQUARE}128"
    )


Budget = Annotated[int | str, BeforeValidator(_check_budget)]
"""Annotated images to train on, ``all``, or ``square-N``: one square of N pixels of one image."""
Tree = dict[str, Any]


class MethodEntry(Strict):
    """One line of the comparison: a pretraining, and the keys in which its fine-tuning differs; or a classifier."""

    name: Name
    """Name of the entry in tables; any name."""
    pretrain: Tree | None
    """Keys of a pretraining configuration, a file, or ``none``: supervised training from random weights. A classifier
    needs none; with one, its features are the maps of that trunk."""
    finetune: Tree = Field(default_factory=dict)
    """Keys of the fine-tuning that are different for this entry. In a loaded study both also have the keys of all
    runs."""
    classifier: Tree | None = None
    """Keys of a pixel classifier, or a file: the entry is this classifier instead of a fine-tuning."""

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, tree: Any) -> Any:
        if isinstance(tree, Mapping) and tree.get("classifier") is not None:
            return {"pretrain": None, **tree}
        return tree

    @model_validator(mode="after")
    def _one_kind(self) -> MethodEntry:
        if self.classifier is not None and self.finetune:
            raise ValueError(
                f"method {self.name} has both classifier and finetune; an entry is one of them: remove the other"
            )
        return self

    @field_validator("pretrain", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return None if value == NO_PRETRAINING else value


class DrawnReferences(Strict):
    """References drawn from the annotated training images, for a data set without recommended ones."""

    count: Count
    seed: Annotated[int, Field(ge=0)] = 0


class DatasetEntry(Strict):
    """One data set of the grid."""

    name: str
    references: tuple[str, ...] | DrawnReferences | None = None
    """Image ids, each the first annotated image of one repetition; by default those that the archive recommends; or
    ``count`` drawn ones."""
    budgets: tuple[Budget, ...] | None = None
    """Instead of the budgets of the study."""
    template: str = ""
    """The annotated image of the pretraining if ``pretrain_per`` is not reference; by default the first reference."""


class SyntheticImages(Strict):
    """Synthetic alloys that the study makes in its folder."""

    images: Count = 24
    size: tuple[Count, Count] = (128, 128)
    families: tuple[str, ...] = ("grains", "particles")
    seed: Annotated[int, Field(ge=0)] = 0


class StudyConfig(Strict):
    """A study. The keys of its runs are those of the pretraining and fine-tuning configurations."""

    kind: Literal["study"] = "study"
    name: Name = "study"
    run: str = ""
    """The study's folder; by default ``runs/<name>``. The same study, also an extended one, resumes there."""
    reuse: tuple[str, ...] = ()
    """Folders of other studies: their finished runs are copied instead of repeated if they would be the same here. A
    folder that does not exist yet is passed over."""
    archive: str = ""
    """An archive file or folder of shards."""
    synthetic: SyntheticImages | None = None
    """Make an archive of synthetic alloys instead of ``archive``."""
    methods: tuple[MethodEntry, ...]
    datasets: tuple[DatasetEntry, ...]
    budgets: tuple[Budget, ...] = (1,)
    """Annotated images per fine-tuning."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (10,)
    """Each seed repeats everything, including pretraining."""
    pretrain_per: Literal["reference", "dataset", "study"] = "reference"
    """For methods with an annotated image in pretraining. reference: the image of the fine-tuning, one trunk for each,
    as in the paper. dataset, study: one trunk for each data set, or for all, with the annotation of one ``template``.
    Methods without annotation are always pretrained once per seed."""
    pretrain: Tree = Field(default_factory=dict)
    """Keys of all pretrainings; ``data.datasets`` and ``data.splits`` are the pool."""
    finetune: Tree = Field(default_factory=dict)
    """Keys of all fine-tunings."""
    compare: tuple[Name, ...] = ("none", "simclr")
    """Entries with which every other one is compared, pair by pair; those that the study lacks are passed over."""
    headline: tuple[str, ...] = ()
    """``dataset/split`` of the scores that the overall comparison averages; by default the first test split of every
    data set."""
    show: tuple[str, ...] = ()
    """Test images whose predictions the page shows; by default the median image of each data set and split."""

    @field_validator("run")
    @classmethod
    def _expanded(cls, value: str) -> str:
        return check_folder("run", value)

    @model_validator(mode="after")
    def _consistent(self) -> StudyConfig:
        for key, entries in (
            ("methods", [entry.name for entry in self.methods]),
            ("datasets", [entry.name for entry in self.datasets]),
            ("seeds", list(map(str, self.seeds))),
            ("headline", list(self.headline)),
        ):
            if not entries and key != "headline":
                raise ValueError(f"{key} is empty; a study needs at least one entry")
            twice = next((name for name in entries if entries.count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"{key} has '{twice}' twice; remove or rename one")
        if not self.budgets or any(entry.budgets == () for entry in self.datasets):
            raise ValueError("budgets is empty; a study needs at least one")
        if bool(self.archive) == (self.synthetic is not None):
            raise ValueError(
                "give one archive: the path of a file with archive=PATH, or settings under synthetic"
            )
        for text in self.headline:
            if len(text.split("/")) != 2:
                raise ValueError(f"headline has '{text}'; write dataset/split, for example steel/test")
        return self

    @property
    def folder(self) -> Path:
        """The folder of the study."""
        return Path(self.run or f"runs/{self.name}")


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read, merge and check a study file and the configurations that it names.

    Args:
        path: YAML file.
        overrides: ``key.sub=value`` strings; keys of all runs begin with ``pretrain.`` or ``finetune.``.

    Raises:
        UserError: naming the file, the key and the fix.
    """
    path = Path(path)
    tree = read_tree(path)
    apply_overrides(tree, overrides)
    if tree.setdefault("kind", "study") != "study":
        raise UserError(
            f"{path}: this is a {tree['kind']} configuration, not a study{did_you_mean(str(tree['kind']), ['study'])}"
        )
    common = {kind: _section(tree.get(kind) or {}, path, kind) for kind in ("pretrain", "finetune")}
    tree.update(common)
    entries = tree.get("methods")
    if isinstance(entries, list):
        tree["methods"] = [_entry(entry, common, path) for entry in entries]
    try:
        return StudyConfig.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{path}: {first_problem(StudyConfig, error)}") from None


def study_yaml(study: StudyConfig) -> str:
    """The study with the content of all files that it names, as YAML for :func:`load_study`."""
    tree = study.model_dump(mode="json")
    for entry in tree["methods"]:
        entry["pretrain"] = NO_PRETRAINING if entry["pretrain"] is None else entry["pretrain"]
        if entry["classifier"] is not None:
            # Read again, it would get the keys of the study's fine-tunings.
            del entry["finetune"]
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def square_of(budget: int | str) -> int:
    """Side of the square of a budget ``square-N``; 0 for other budgets."""
    return int(budget.removeprefix(_SQUARE)) if isinstance(budget, str) and budget.startswith(_SQUARE) else 0


def _entry(entry: Any, common: Mapping[str, Tree], path: Path) -> Any:
    """An entry with the keys of all runs and of its files; anything but a mapping is left to the schema."""
    if not isinstance(entry, dict):
        return entry
    what = f"method {entry.get('name')}"
    # A classifier has no keys of the study's fine-tunings.
    found = {"finetune": {}, **entry} if entry.get("classifier") is None else dict(entry)
    for kind in ("pretrain", "classifier"):
        given = found.get(kind)
        if isinstance(given, str) and given != NO_PRETRAINING:
            found[kind] = {"extends": given}
    if isinstance(found.get("classifier"), Mapping):
        found["classifier"] = _section(found["classifier"], path, what)
    for kind, keys in common.items():
        if isinstance(found.get(kind), Mapping):
            found[kind] = _section(found[kind], path, what, keys)
    return found


def _section(tree: Any, path: Path, what: str, common: Mapping[str, Any] | None = None) -> Tree:
    """The file that a section extends, then ``common``, then the section's own keys; later ones win."""
    if not isinstance(tree, Mapping):
        raise UserError(f"{path}: {what} must have keys and values; see configs/studies/ for examples")
    own = dict(tree)
    base = own.pop("extends", None)
    read: Tree = {}
    if base is not None:
        if not isinstance(base, str):
            raise UserError(f"{path}: {what}: extends is {base!r}; give the path of a file")
        file = path.parent / base
        if not file.is_file():
            raise UserError(f"{path}: {what}: file {base} not found; paths start at the study file")
        read = read_tree(file)
    return merge_trees(merge_trees(read, common or {}), own)
