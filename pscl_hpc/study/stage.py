"""The work of a job of a study: a pretraining, or a fine-tuning or classifier and its scores."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pscl_hpc.archive import Archive
from pscl_hpc.config import RunConfig
from pscl_hpc.errors import UserError
from pscl_hpc.files import write_json
from pscl_hpc.models import TRUNK_FILE
from pscl_hpc.results.evaluation import Evaluation, read_evaluation
from pscl_hpc.runs import RunFolder
from pscl_hpc.segmentation.classifier_config import ClassifierConfig
from pscl_hpc.segmentation.config import InferenceConfig
from pscl_hpc.segmentation.evaluate import EVALUATION_FILE, PRIMARY_SPLIT
from pscl_hpc.segmentation.trained import SegmentationConfig, default_inference

TIMES_FILE = "times.json"


def run_stage(config: RunConfig) -> None:
    """Start or resume a job: pretrain, or train a model on annotated images and score it on all test splits.

    The seconds of each part are added to ``times.json`` of the run.

    Raises:
        UserError: among others, the archive is not the one named in ``run.json``.
    """
    folder = Path(config.run)
    _check_archive(config)
    if isinstance(config, SegmentationConfig):
        from pscl_hpc.segmentation import evaluate, finetune, train_classifier

        with _timed(folder, config.kind):
            train_classifier(config) if isinstance(config, ClassifierConfig) else finetune(config)
        # The archive may have been replaced during the training.
        _check_archive(config)
        with Archive(config.data.archive) as archive:
            tests = test_splits(archive, archive.find(config.references[0]).dataset)
        if configured_scores(folder, _planned(folder), tests) is None:
            with _timed(folder, "evaluate"):
                evaluate(folder, archive=config.data.archive)
    else:
        from pscl_hpc.pretraining import pretrain
        from pscl_hpc.pretraining.config import PretrainConfig

        assert isinstance(config, PretrainConfig)
        with _timed(folder, "pretrain"):
            pretrain(config)


def test_splits(archive: Archive, dataset: str) -> tuple[str, ...]:
    """The splits that score the runs of a data set: the test splits with annotated images."""
    found = {record.split for record in archive.select(datasets=[dataset], has_mask=True)}
    return tuple(sorted(filter(is_test, found)))


def is_test(split: str) -> bool:
    """Whether a split scores: ``test``, and every other whose name starts with it."""
    return split.startswith(PRIMARY_SPLIT)


def configured_scores(folder: Path, fingerprint: str, tests: Sequence[str]) -> Evaluation | None:
    """The scores of a run on all these splits of this archive, with its configured inference; None without them.

    ``evaluate`` with ``--split`` or with options of inference replaces the scores of a study by others.
    """
    try:
        found, config = read_evaluation(folder / EVALUATION_FILE), RunFolder.load(folder).config
    except UserError:
        return None
    assert isinstance(config, SegmentationConfig)
    inference = default_inference(config)
    same = inference.model_dump() == {key: getattr(found, key) for key in InferenceConfig.model_fields}
    return (
        found
        if same and made_from(fingerprint, found.archive) and set(tests) <= found.splits.keys()
        else None
    )


def is_done(folder: Path, kind: str, fingerprint: str, tests: Sequence[str]) -> bool:
    """Whether a job is complete: its run is done, and it has a trunk or scores.

    Args:
        folder: Of the run.
        kind: ``pretrain``, ``finetune`` or ``classifier``.
        fingerprint: Of the archive that it must be made from.
        tests: Splits that a fine-tuning must be scored on.
    """
    try:
        run = RunFolder.load(folder)
    except UserError:
        return False
    if not run.done or not made_from(fingerprint, run.record.get("archive")):
        return False
    if kind == "pretrain":
        return (folder / TRUNK_FILE).is_file()
    return configured_scores(folder, fingerprint, tests) is not None


def made_from(fingerprint: str, recorded: str | None) -> bool:
    """Whether a recorded fingerprint is that of the archive; true where either is unknown, as before a run begins."""
    return not fingerprint or recorded in (None, fingerprint)


def read_times(folder: Path) -> dict[str, float]:
    """Seconds of each part of a run over all attempts; empty if unknown."""
    try:
        tree: Any = json.loads((folder / TIMES_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(tree, dict):
        return {}
    return {str(key): float(value) for key, value in tree.items() if isinstance(value, int | float)}


def _planned(folder: Path) -> str:
    """Fingerprint of the archive that a run was planned with; empty if unknown."""
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
                f"{archive.path}: is not the archive that {config.run} was planned with; restore it, or repeat the "
                "study's command to plan with this one"
            )


@contextmanager
def _timed(folder: Path, part: str) -> Iterator[None]:
    """Add the seconds of a block to ``times.json``, even if it fails."""
    start = time.perf_counter()
    try:
        yield
    finally:
        if folder.is_dir() and os.environ.get("RANK", "0") == "0":
            times = read_times(folder)
            times[part] = round(times.get(part, 0.0) + time.perf_counter() - start, 3)
            write_json(folder / TIMES_FILE, times)
