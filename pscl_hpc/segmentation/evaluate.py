"""Scores of a fine-tuned run on the annotated images of a split."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pscl_hpc.archive import Archive, ImageRecord
from pscl_hpc.errors import UserError, did_you_mean
from pscl_hpc.models import load_segmentation
from pscl_hpc.progress import Progress
from pscl_hpc.runs import RunFolder, write_json
from pscl_hpc.segmentation.classes import ClassList
from pscl_hpc.segmentation.config import FinetuneConfig
from pscl_hpc.segmentation.inference import Predictor
from pscl_hpc.segmentation.metrics import ConfusionMatrix
from pscl_hpc.segmentation.packing import packed_unlike
from pscl_hpc.segmentation.pictures import png_bytes
from pscl_hpc.segmentation.written import WrittenPictures
from pscl_hpc.training import setup_device

EVALUATION_FILE = "evaluation.json"
PREDICTIONS = "predictions"
PRIMARY_SPLIT = "test"
"""The split whose scores stand at the top of evaluation.json, where it is scored."""


def evaluate(
    run: str | Path,
    *,
    splits: Sequence[str] | None = None,
    archive: str | Path | None = None,
    tta: bool = False,
    adapt: float = 0.0,
    progress: bool = False,
) -> dict[str, Any]:
    """Score a run, write ``evaluation.json`` and the predictions as class-index PNGs.

    Scoring again replaces both, and removes predictions of images that are no longer in a scored split; the same
    weights and images give the same bytes on one machine. A notice is printed where images were packed with other
    options than those that the run learnt from.

    Args:
        run: A finished fine-tuning run.
        splits: Splits to score; ``test`` and every other split whose name starts so when None. The
            references are left out of any split.
        archive: Read the images from here and not from the archive that the run was trained on.
        tta: Test-time augmentation, see :class:`Predictor`.
        adapt: Share of each image's own statistics in batch normalisation, 0 to 1, see :mod:`adaptation`.
        progress: Show a progress bar when the output is a terminal.

    Returns:
        What ``evaluation.json`` holds. At the top the scores of ``test``, or of the first split where that is not
        scored; under ``splits`` those of each split, with the Dice of each image.

    Raises:
        UserError: no finished fine-tuning run, another class list, or nothing annotated to score.
    """
    folder, config, predictor = open_run(run, tta=tta, adapt=adapt)
    if archive is None and not Path(config.data.archive).exists():
        raise UserError(
            f"{config.data.archive}: the archive that {folder.path} was trained on is not there; name it with "
            "--archive, or start where the training was started"
        )
    source = Archive(archive if archive is not None else config.data.archive)
    collection = config.references[0].partition("/")[0]
    chosen = _scored_images(source, collection, config, splits)
    if ClassList.of(source.collections[collection]) != predictor.classes:
        raise UserError(
            f"{source.path}: the classes of {collection} are not those that {folder.path} was trained with; "
            "name the right archive with --archive"
        )
    for notice in packed_unlike(folder, (record for records in chosen.values() for record in records)):
        print(f"notice: {notice}", file=sys.stderr)
    scored: dict[str, dict[str, Any]] = {}
    pictures = WrittenPictures(folder.path / PREDICTIONS)
    with Progress("evaluate", sum(map(len, chosen.values())), unit="image", show=progress) as bar:
        for split, records in chosen.items():
            total = ConfusionMatrix(predictor.classes)
            per_image = []
            pictures.begin(split)
            for record in records:
                labels = predictor.archive_image(source, record.index)
                pictures.write(split, record.id, png_bytes(labels))
                single = ConfusionMatrix(predictor.classes)
                single.update(labels, source.read_mask(record.index))
                total.merge(single)
                scores = single.scores()
                per_image.append(
                    {
                        "id": record.id,
                        "mean_dice": scores.mean_dice,
                        "dice": scores.dice,
                        "pixel_accuracy": scores.pixel_accuracy,
                    }
                )
                bar.advance()
            scored[split] = {**total.scores().to_json(), "per_image": per_image}
    primary = PRIMARY_SPLIT if PRIMARY_SPLIT in scored else next(iter(scored))
    content = {
        "split": primary,
        **{key: value for key, value in scored[primary].items() if key != "per_image"},
        "collection": collection,
        "classes": list(predictor.classes.names),
        "background": predictor.classes.background,
        "ignore_classes": list(predictor.classes.ignored),
        "references": list(config.references),
        "pretrained": config.pretrained,
        "checkpoint": folder.record.get("best"),
        "archive": source.fingerprint,
        "tta": tta,
        "adapt": adapt,
        "splits": scored,
    }
    write_json(folder.path / EVALUATION_FILE, content)
    pictures.finish()
    return content


def open_run(
    run: str | Path, *, tta: bool = False, adapt: float = 0.0
) -> tuple[RunFolder, FinetuneConfig, Predictor]:
    """A fine-tuned run and its predictor, on the best device here.

    Args:
        run: The run folder.
        tta: Test-time augmentation, see :class:`Predictor`.
        adapt: Share of each image's own statistics in batch normalisation, 0 to 1.

    Raises:
        UserError: no run, another kind of run, one without ``model.safetensors``, or ``adapt`` is no share.
    """
    if not 0 <= adapt <= 1:
        raise UserError(f"--adapt is {adapt:g}; it is a share, from 0 (not adapted) to 1")
    folder = RunFolder.load(run)
    config = folder.config
    if not isinstance(config, FinetuneConfig):
        raise UserError(f"{folder.path}: is a {config.kind} run; name a fine-tuning run")
    net, card = load_segmentation(folder.path)
    runtime = config.runtime.model_copy(update={"device": "auto"})
    device = setup_device(runtime)
    predictor = Predictor(net.to(device), ClassList.of(card), device, runtime=runtime, tta=tta, adapt=adapt)
    return folder, config, predictor


def _scored_images(
    archive: Archive, collection: str, config: FinetuneConfig, splits: Sequence[str] | None
) -> dict[str, list[ImageRecord]]:
    annotated = [
        record
        for record in archive.select(datasets=[collection], has_mask=True)
        if record.id not in config.references
    ]
    known = list(dict.fromkeys(sorted(record.split for record in annotated)))
    if splits is None:
        splits = [name for name in known if name.startswith(PRIMARY_SPLIT)]
        if not splits:
            raise UserError(f"{archive.path}: {collection} has no annotated test images{_advice(known)}")
    for name in splits:
        if name not in known:
            raise UserError(
                f"--split '{name}': {collection} has no annotated image in it besides the references"
                f"{did_you_mean(name, known)}"
            )
    return {name: [record for record in annotated if record.split == name] for name in dict.fromkeys(splits)}


def _advice(known: Sequence[str]) -> str:
    """What can be done without test images."""
    named = [f"'{name}'" for name in known if name]
    if named:
        return f"; choose a split with --split: {', '.join(named)}"
    return (
        ", so there is nothing to score; name some in splits.json, or look at what 'pscl-hpc predict' draws"
    )
