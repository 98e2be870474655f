"""The configuration of a study: methods x data sets x annotation budgets x references x seeds.

A study file holds the grid and what its runs have in common. Where it names a pretraining or fine-tuning configuration
(``pretrain: FILE`` or ``extends: FILE``), the file is found relative to the study file and read in: a loaded study
needs no other file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from pscl_hpc.config import Count, Strict, check_folder
from pscl_hpc.config.loading import apply_override, first_problem, merge_trees, read_tree
from pscl_hpc.errors import UserError, did_you_mean

NO_PRETRAINING = "none"
"""What ``pretrain`` says for supervised training from random weights."""
ALL = "all"
"""The budget of all annotated training images."""
_SQUARE = "square-"

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]


def _check_budget(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    # Whichever kind of budget was meant, the sentence names them all.
    try:
        return check(value)
    except ValidationError:
        raise ValueError(
            f"{value!r} is no budget; write a number of images, {ALL}, or {_SQUARE}N for one square of N pixels, for "
            f"example {_SQUARE}128"
        ) from None


Budget = Annotated[
    Count | Annotated[str, Field(pattern=rf"^({ALL}|{_SQUARE}[1-9][0-9]*)$")], WrapValidator(_check_budget)
]
"""Annotated images to train on, ``all``, or ``square-N``: one square of N pixels of one image."""
Tree = dict[str, Any]


class MethodEntry(Strict):
    """One line of the comparison: a pretraining, and what is different in its fine-tuning."""

    name: Name
    """Names the entry in tables; free."""
    pretrain: Tree | None
    """Keys of a pretraining configuration, a file, or ``none``: supervised training from random weights."""
    finetune: Tree = Field(default_factory=dict)
    """Keys of the fine-tuning that are different for this entry. A loaded study has those of all runs in both."""

    @field_validator("pretrain", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return None if value == NO_PRETRAINING else value


class DrawnReferences(Strict):
    """References drawn from the annotated training images, for a data set that recommends none."""

    count: Count
    seed: Annotated[int, Field(ge=0)] = 0


class DatasetEntry(Strict):
    """One data set of the grid."""

    name: str
    references: tuple[str, ...] | DrawnReferences | None = None
    """Image ids, each the first annotated image of one repetition; those that the archive recommends when absent;
    or so many drawn ones."""
    budgets: tuple[Budget, ...] | None = None
    """In place of the study's."""
    template: str = ""
    """The annotated image of the pretraining where ``pretrain_per`` is not reference; empty: the first reference."""


class SyntheticImages(Strict):
    """Synthetic alloys that the study makes itself, in its own folder."""

    images: Count = 24
    size: tuple[Count, Count] = (128, 128)
    families: tuple[str, ...] = ("grains", "particles")
    seed: Annotated[int, Field(ge=0)] = 0


class StudyConfig(Strict):
    """A study. The keys of its runs are those of the pretraining and fine-tuning configurations."""

    kind: Literal["study"] = "study"
    name: Name = "study"
    run: str = ""
    """The study's folder; ``runs/<name>`` when empty. The same study goes on there, and may have grown."""
    reuse: tuple[str, ...] = ()
    """Folders of other studies: runs that are finished there and would be the same here are copied, not repeated. One
    that is not there yet has none."""
    archive: str = ""
    """An archive file or folder of shards."""
    synthetic: SyntheticImages | None = None
    """Make an archive of synthetic alloys in place of ``archive``."""
    methods: tuple[MethodEntry, ...]
    datasets: tuple[DatasetEntry, ...]
    budgets: tuple[Budget, ...] = (1,)
    """Annotated images per fine-tuning."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (10,)
    """Each repeats everything, pretraining included."""
    pretrain_per: Literal["reference", "dataset", "study"] = "reference"
    """For methods with an annotated image in pretraining. reference: it is that of the fine-tuning, one trunk for each,
    as in the paper. dataset, study: one trunk for each data set, or for all, with the annotation of one ``template``.
    Methods without annotation are pretrained once per seed in any case."""
    pretrain: Tree = Field(default_factory=dict)
    """Keys of all pretrainings; ``data.datasets`` and ``data.splits`` are the pool."""
    finetune: Tree = Field(default_factory=dict)
    """Keys of all fine-tunings."""
    compare: tuple[Name, ...] = ("none", "simclr")
    """Entries that every other one is compared with, pair by pair, as far as the study has them."""
    headline: tuple[str, ...] = ()
    """``dataset/split`` of the scores that the overall comparison averages; every data set's first test split when
    empty."""
    show: tuple[str, ...] = ()
    """Test images whose predictions the page shows; the median image of each data set and split when empty."""

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
        ):
            if not entries:
                raise ValueError(f"{key} is empty; a study needs at least one entry")
            for name in entries:
                if entries.count(name) > 1:
                    raise ValueError(f"{key} has '{name}' twice; give each entry its own name")
        if not self.budgets or any(entry.budgets == () for entry in self.datasets):
            raise ValueError("budgets is empty; a study needs at least one")
        if bool(self.archive) == (self.synthetic is not None):
            raise ValueError(
                "give one archive: the path of a file with archive=PATH, or settings under synthetic"
            )
        for text in self.headline:
            if len(text.split("/")) != 2:
                raise ValueError(f"headline has '{text}'; write dataset/split, for example steel/test")
            if self.headline.count(text) > 1:
                raise ValueError(f"headline has '{text}' twice; name each score once")
        return self

    @property
    def folder(self) -> Path:
        """Where the study lies."""
        return Path(self.run or f"runs/{self.name}")


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read, merge and check a study file and the configurations that it names.

    Args:
        path: YAML file.
        overrides: ``key.sub=value`` strings; ``pretrain.`` and ``finetune.`` go before the keys of all runs.

    Raises:
        UserError: naming the file, the key and the mend.
    """
    path = Path(path)
    tree = read_tree(path)
    for text in overrides:
        apply_override(tree, text)
    if tree.setdefault("kind", "study") != "study":
        raise UserError(
            f"{path}: this is a {tree['kind']} configuration, not a study{did_you_mean(str(tree['kind']), ['study'])}"
        )
    common = {}
    for kind in ("pretrain", "finetune"):
        common[kind] = tree[kind] = _read_in(tree.get(kind) or {}, path, kind)
    entries = tree.get("methods")
    if isinstance(entries, list):
        tree["methods"] = [_entry(entry, common, path) for entry in entries]
    try:
        return StudyConfig.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{path}: {first_problem(StudyConfig, error)}") from None


def study_yaml(study: StudyConfig) -> str:
    """The study with all that it names written out, as YAML that :func:`load_study` reads."""
    tree = study.model_dump(mode="json")
    for entry in tree["methods"]:
        entry["pretrain"] = NO_PRETRAINING if entry["pretrain"] is None else entry["pretrain"]
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def square_of(budget: int | str) -> int:
    """Side of the square of a budget ``square-N``; 0 for other budgets."""
    return int(budget.removeprefix(_SQUARE)) if isinstance(budget, str) and budget.startswith(_SQUARE) else 0


def _entry(entry: Any, common: Mapping[str, Tree], path: Path) -> Any:
    """An entry with the keys of all runs and its files read in; what is no entry is left to the schema."""
    if not isinstance(entry, dict):
        return entry
    what = f"method {entry.get('name')}"
    found = {"finetune": {}, **entry}
    given = found.get("pretrain")
    if isinstance(given, str) and given != NO_PRETRAINING:
        found["pretrain"] = {"extends": given}
    for kind, keys in common.items():
        tree = found.get(kind)
        if isinstance(tree, Mapping):
            own = {key: value for key, value in tree.items() if key != "extends"}
            base = {"extends": tree["extends"]} if "extends" in tree else {}
            found[kind] = merge_trees(merge_trees(_read_in(base, path, what), keys), own)
    return found


def _read_in(tree: Any, path: Path, what: str) -> Tree:
    """A section with the file that it extends."""
    if not isinstance(tree, dict):
        raise UserError(f"{path}: {what} holds no keys and values; see configs/studies/ for examples")
    base = tree.get("extends")
    own = {key: value for key, value in tree.items() if key != "extends"}
    if base is None:
        return own
    if not isinstance(base, str):
        raise UserError(f"{path}: {what}: a file is named by its path, not by {base!r}")
    file = path.parent / base
    if not file.is_file():
        raise UserError(
            f"{path}: {what} names the file {base}, which is not there; paths start at the study file"
        )
    return merge_trees(read_tree(file), own)
