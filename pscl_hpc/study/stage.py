"""What a job of a study does: the ordinary stage of its run folder; a fine-tuning is scored as well."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pscl_hpc.archive import Archive
from pscl_hpc.config import RunConfig
from pscl_hpc.errors import UserError
from pscl_hpc.models import TRUNK_FILE
from pscl_hpc.runs import RunFolder, write_json
from pscl_hpc.segmentation.config import FinetuneConfig
from pscl_hpc.segmentation.evaluate import PRIMARY_SPLIT
from pscl_hpc.segmentation.summary import read_evaluation

TIMES_FILE = "times.json"


def run_stage(config: RunConfig) -> None:
    """Do, or finish, a job: pretrain, or fine-tune and score on all test splits.

    The seconds that each part took are added to ``times.json`` of the run.

    Raises:
        UserError: among others, the archive is not the one that ``run.json`` names.
    """
    folder = Path(config.run)
    _check_archive(config)
    if isinstance(config, FinetuneConfig):
        from pscl_hpc.segmentation import evaluate, finetune

        with _Timer(folder, "finetune"):
            finetune(config)
        # It may have been exchanged during the training.
        _check_archive(config)
        with Archive(config.data.archive) as archive:
            tests = test_splits(archive, archive.find(config.references[0]).dataset)
        if not is_evaluated(folder, _planned(folder), tests):
            with _Timer(folder, "evaluate"):
                evaluate(folder, archive=config.data.archive)
    else:
        from pscl_hpc.pretraining import pretrain
        from pscl_hpc.pretraining.config import PretrainConfig

        with _Timer(folder, "pretrain"):
            assert isinstance(config, PretrainConfig)
            pretrain(config)


def test_splits(archive: Archive, dataset: str) -> tuple[str, ...]:
    """The splits that score the runs of a data set: the test splits with annotated images."""
    found = {record.split for record in archive.select(datasets=[dataset], has_mask=True)}
    return tuple(sorted(filter(is_test, found)))


def is_test(split: str) -> bool:
    """Whether the images of a split score: ``test``, and every other whose name starts so."""
    return split.startswith(PRIMARY_SPLIT)


def is_evaluated(folder: Path, fingerprint: str, tests: Sequence[str]) -> bool:
    """Whether the scores of a run on all these splits are there, and those of images of this archive."""
    try:
        return has_scores(read_evaluation(folder), fingerprint, tests)
    except UserError:
        return False


def has_scores(evaluation: Mapping[str, Any], fingerprint: str, tests: Sequence[str]) -> bool:
    """The same of the content of ``evaluation.json``, which ``evaluate --split``, ``--tta`` or ``--adapt`` replaces."""
    plain = not evaluation.get("tta") and not evaluation.get("adapt")
    return plain and made_from(fingerprint, evaluation) and set(tests) <= set(evaluation["splits"])


def is_done(folder: Path, kind: str, fingerprint: str, tests: Sequence[str]) -> bool:
    """Whether a job has nothing left to do: its run ended well and its product, or its scores, are there.

    Args:
        folder: Of the run.
        kind: ``pretrain`` or ``finetune``.
        fingerprint: Of the archive that all of it has to be made from.
        tests: Splits that a fine-tuning has to be scored on.
    """
    try:
        run = RunFolder.load(folder)
    except UserError:
        return False
    if not run.done or not made_from(fingerprint, run.record):
        return False
    if kind == "pretrain":
        return (folder / TRUNK_FILE).is_file()
    return is_evaluated(folder, fingerprint, tests)


def made_from(fingerprint: str, record: Mapping[str, Any]) -> bool:
    """Whether a record speaks of this archive; one that names none is believed, and without a fingerprint any."""
    return not fingerprint or record.get("archive") in (None, fingerprint)


def read_times(folder: Path) -> dict[str, float]:
    """Seconds of each part of a run over all attempts; empty where nothing is known."""

    try:
        tree: Any = json.loads((folder / TIMES_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(tree, dict):
        return {}
    return {str(key): float(value) for key, value in tree.items() if isinstance(value, int | float)}


def _planned(folder: Path) -> str:
    """Fingerprint of the archive that a run was planned or begun with; empty when it is not known."""
    try:
        return str(RunFolder.load(folder).record.get("archive") or "")
    except UserError:
        return ""


def _check_archive(config: RunConfig) -> None:
    planned = _planned(Path(config.run))
    if not planned:
        return
    with Archive(config.data.archive) as archive:
        if archive.fingerprint != planned:
            raise UserError(
                f"{archive.path}: is not the archive that {config.run} was planned with; restore it, or give the "
                "study's command again to plan with this one"
            )


class _Timer:
    """Adds the seconds of a block to ``times.json``, also when it fails."""

    def __init__(self, folder: Path, part: str) -> None:
        self._folder = folder
        self._part = part

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        if self._folder.is_dir() and os.environ.get("RANK", "0") == "0":
            times = read_times(self._folder)
            seconds = times.get(self._part, 0.0) + time.perf_counter() - self._start
            write_json(self._folder / TIMES_FILE, {**times, self._part: round(seconds, 3)})
