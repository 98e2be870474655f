"""From a study to its runs: every cell of the grid has a run, and equal runs are one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pscl_hpc.archive import Archive
from pscl_hpc.config import resolve_config
from pscl_hpc.errors import UserError, did_you_mean
from pscl_hpc.methods import METHODS, ReferencedMethodConfig
from pscl_hpc.pretraining import PretrainData
from pscl_hpc.pretraining.config import PretrainConfig
from pscl_hpc.segmentation.classifier_config import ClassifierConfig
from pscl_hpc.segmentation.classify import check_classifier
from pscl_hpc.segmentation.config import FinetuneConfig
from pscl_hpc.segmentation.data import select_data
from pscl_hpc.segmentation.trained import SegmentationConfig
from pscl_hpc.study.config import DatasetEntry, MethodEntry, StudyConfig, Tree
from pscl_hpc.study.keys import run_key
from pscl_hpc.study.pool import Pool, check_pool
from pscl_hpc.study.references import Annotation, Draws
from pscl_hpc.study.stage import is_done, is_test, test_splits

SHORT = 12
"""Digits of a key in the name of a folder."""
PRETRAINED, FINETUNED, CLASSIFIED = "pretrain", "finetune", "classifier"
"""Folders of a study for the runs of each kind."""
FEATURES = "features"
"""Folder of a study for the features that its classifiers share."""
StageConfig = PretrainConfig | SegmentationConfig
_KIND = {FINETUNED: "fine-tuning", CLASSIFIED: "classifier"}
_EXAMPLES = {"data": "splits=[train]", "method": "name=simclr", "reference": "per_batch=1"}
"""An example for each section into which the plan writes."""


@dataclass(frozen=True)
class Job:
    """A run of the study: a stage with its configuration, whose ``run`` is its folder."""

    key: str
    label: str
    """Its name in texts."""
    config: StageConfig
    fingerprint: str
    """Of the archive."""
    needs: str = ""
    """Key of its pretraining; empty if there is none."""
    tests: tuple[str, ...] = ()
    """Splits that a fine-tuning or a classifier is scored on."""

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.config.run)

    def is_done(self, folder: Path | None = None) -> bool:
        """Whether its run, or the one in another folder, is complete."""
        return is_done(folder or self.folder, self.config.kind, self.fingerprint, self.tests)


@dataclass(frozen=True)
class Cell:
    """One place of the grid."""

    method: str
    """Name of the entry."""
    annotation: Annotation
    seed: int
    key: str
    """Of its fine-tuning or classifier."""
    pretraining: str
    """Key, empty from random weights."""


@dataclass(frozen=True)
class Plan:
    """A study, ready to run."""

    study: StudyConfig
    archive: str
    """Path of the archive."""
    fingerprint: str
    jobs: dict[str, Job]
    """By key; pretrainings first."""
    cells: tuple[Cell, ...]
    pools: dict[str, Pool]
    """Images of each entry with a pretraining, by its name."""
    headline: tuple[tuple[str, str], ...]
    """Data set and split of the scores that summarise the study."""


def make_plan(study: StudyConfig, archive_path: str) -> Plan:
    """Resolve every run of a study.

    Raises:
        UserError: a configuration, a reference or a budget is not valid, or a pool has images that score the result.
    """
    with Archive(archive_path) as archive:
        return _Planner(study, archive).plan()


class _Planner:
    def __init__(self, study: StudyConfig, archive: Archive) -> None:
        self.study = study
        self.archive = archive
        self.pretrainings: dict[str, Job] = {}
        self.models: dict[str, Job] = {}
        self.pools: dict[str, Pool] = {}
        # Entries are compared: a validation image of one must not be a training image of another.
        default = FinetuneConfig.model_fields["validation_split"].default
        self.validation = {
            str(entry.finetune.get("validation_split", default))
            for entry in study.methods
            if entry.classifier is None
        }
        self.draws = {entry.name: Draws(archive, entry) for entry in study.datasets}
        self.tests = {entry.name: test_splits(archive, entry.name) for entry in study.datasets}

    def plan(self) -> Plan:
        study = self.study
        self._check_shown()
        cells = [
            self._cell(entry, dataset, annotation, seed)
            for dataset in study.datasets
            for annotation in self.draws[dataset.name].annotations(dataset.budgets or study.budgets)
            for seed in study.seeds
            for entry in study.methods
        ]
        return Plan(
            study=study,
            archive=str(self.archive.path),
            fingerprint=self.archive.fingerprint,
            jobs={**self.pretrainings, **self.models},
            cells=tuple(cells),
            pools=self.pools,
            headline=self._headline(),
        )

    def _cell(self, entry: MethodEntry, dataset: DatasetEntry, annotation: Annotation, seed: int) -> Cell:
        """A place of the grid; plans its run and the pretraining that it needs, unless equal ones are planned."""
        job = self._pretraining(entry, dataset, annotation, seed) if entry.pretrain is not None else None
        own = {
            "seed": seed,
            "references": list(annotation.references),
            "square": annotation.square,
            "pretrained": str(job.folder) if job else "",
        }
        kind, tree = FINETUNED, entry.finetune
        if entry.classifier is not None:
            kind, tree = CLASSIFIED, entry.classifier
        source = f"study {self.study.name}, method {entry.name}, {_KIND[kind]}"
        if tree.get("pretrained"):
            raise UserError(
                f"{source}: pretrained names {tree['pretrained']!r}, but a study starts from its own pretrainings; "
                "describe the pretraining under 'pretrain', and name studies that have it in 'reuse'"
            )
        config, _ = self._resolve({**tree, **own, "kind": kind}, source)
        assert isinstance(config, SegmentationConfig)
        needs = job.key if job else ""
        key = run_key(config, self.archive.fingerprint, needs)
        if key not in self.models:
            if isinstance(config, ClassifierConfig):
                check_classifier(config, self.archive)
            else:
                select_data(config, self.archive)
            stem = "+".join(name.partition("/")[2] for name in annotation.references[:2])
            more = f"+{len(annotation.references) - 2}" if len(annotation.references) > 2 else ""
            start = "scratch" if isinstance(config, FinetuneConfig) else safe(entry.name)
            if job and isinstance(job.config, PretrainConfig):
                start = job.config.method.name
            name = f"{safe(annotation.dataset)}--{safe(stem)[:48]}{more}--{start}--{key[:SHORT]}"
            label = f"{annotation.dataset} {stem}{more} budget {annotation.budget} seed {seed} {entry.name}"
            placed = self._placed(config, kind, name)
            tests = self.tests[dataset.name]
            self.models[key] = Job(key, label, placed, self.archive.fingerprint, needs, tests)
        return Cell(entry.name, annotation, seed, key, needs)

    def _pretraining(
        self, entry: MethodEntry, dataset: DatasetEntry, annotation: Annotation, seed: int
    ) -> Job:
        """The pretraining of a cell, planned unless an equal one is."""
        source = f"study {self.study.name}, method {entry.name}, pretraining"
        tree = {**(entry.pretrain or {}), "kind": "pretrain", "seed": seed}
        template = ""
        method = _section(tree, "method", source)
        name = str(method.get("name", METHODS.default))
        if _takes_references(name):
            ids, square = self._templates(dataset, annotation)
            template = f" {ids[0].partition('/')[2]}" + (f"+{len(ids) - 1}" if len(ids) > 1 else "")
            reference = {
                **_section(method, "reference", source, "method."),
                "ids": list(ids),
                "square": square,
            }
            tree["method"] = {"name": name, **method, "reference": reference}
        config, pool = self._resolve(tree, source)
        assert isinstance(config, PretrainConfig)
        # All name the same images; they may differ in whether their own annotated images are among them.
        if entry.name not in self.pools or pool.without_own:
            self.pools[entry.name] = pool
        key = run_key(config, self.archive.fingerprint)
        if key not in self.pretrainings:
            PretrainData(self.archive, config)
            label = f"pretraining {entry.name}{template} seed {seed}"
            placed = self._placed(config, PRETRAINED, f"{name}--{key[:SHORT]}")
            self.pretrainings[key] = Job(key, label, placed, self.archive.fingerprint)
        return self.pretrainings[key]

    def _resolve(self, tree: Tree, source: str) -> tuple[StageConfig, Pool]:
        """A run's configuration with the archive of the study, and the images that it learns from."""
        data = {**_section(tree, "data", source), "archive": str(self.archive.path)}
        config = resolve_config({**tree, "data": data}, source=source)
        assert isinstance(config, StageConfig)
        return config, check_pool(self.archive, config, validation=self.validation, source=source)

    def _templates(self, dataset: DatasetEntry, annotation: Annotation) -> tuple[tuple[str, ...], int]:
        """The annotated images of a pretraining, and the side of their annotated square."""
        if self.study.pretrain_per == "reference":
            return annotation.references, annotation.square
        home = dataset if self.study.pretrain_per == "dataset" else self.study.datasets[0]
        return (home.template or self.draws[home.name].references[0],), annotation.square

    def _placed(self, config: Any, kind: str, name: str) -> Any:
        # Name and folder follow from the content, so that the same run is found again.
        places = {"run": str(self.study.folder / kind / name), "name": kind}
        if isinstance(config, ClassifierConfig):
            places["cache"] = str(self.study.folder / FEATURES)
        return config.model_copy(update=places)

    def _check_shown(self) -> None:
        """Refuse all but annotated test images of the archive; those of other data sets are not shown."""
        if not self.study.show:
            return
        known = [record.id for record in self.archive.select(has_mask=True) if is_test(record.split)]
        for name in self.study.show:
            if name not in known:
                raise UserError(
                    f"show: {self.archive.path} has no annotated test image '{name}'{did_you_mean(name, known)}"
                )

    def _headline(self) -> tuple[tuple[str, str], ...]:
        for name, splits in self.tests.items():
            if not splits:
                raise UserError(
                    f"datasets: {name} has no annotated test images, so nothing can be scored; remove it"
                )
        if not self.study.headline:
            return tuple((name, splits[0]) for name, splits in self.tests.items())
        chosen = []
        for text in self.study.headline:
            name, _, split = text.partition("/")
            if split not in self.tests.get(name, ()):
                known = ", ".join(f"{key}/{value}" for key, values in self.tests.items() for value in values)
                raise UserError(f"headline: '{text}' is not a test split of the study; choose from: {known}")
            chosen.append((name, split))
        return tuple(chosen)


def safe(text: str) -> str:
    """A text as a part of a file name."""
    return "".join(letter if letter.isalnum() or letter in "._-+" else "_" for letter in text).lstrip(".")


def _section(tree: Tree, key: str, source: str, above: str = "") -> Tree:
    """The keys and values below a key; none if it is absent."""
    section = tree.get(key, {})
    if not isinstance(section, dict):
        raise UserError(
            f"{source}: key '{above}{key}' is {section!r}, not keys and values; write them below it, for example "
            f"{above}{key}.{_EXAMPLES[key]}"
        )
    return section


def _takes_references(name: str) -> bool:
    return name in METHODS.names and issubclass(METHODS.config(name), ReferencedMethodConfig)
