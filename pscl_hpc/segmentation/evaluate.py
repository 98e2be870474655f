"""Scores of a fine-tuned run or a classifier on the annotated images of a split."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Unpack

from pscl_hpc.archive import Archive, ImageRecord
from pscl_hpc.errors import UserError, did_you_mean
from pscl_hpc.files import nfc, write_bytes, write_json
from pscl_hpc.progress import Progress
from pscl_hpc.segmentation.classes import ClassList
from pscl_hpc.segmentation.config import InferenceOptions
from pscl_hpc.segmentation.ingest_options import mismatch_warnings
from pscl_hpc.segmentation.metrics import ConfusionMatrix
from pscl_hpc.segmentation.pictures import picture_name, picture_names, png_bytes
from pscl_hpc.segmentation.trained import ImagePredictor, SegmentationConfig, open_run

EVALUATION_FILE = "evaluation.json"
PREDICTIONS = "predictions"
WRITTEN_FILE = "written.json"
"""In ``predictions``: SHA-256 of each PNG that evaluations wrote, by folder and file name."""
PRIMARY_SPLIT = "test"
"""The split whose scores are at the top level of evaluation.json if it is scored."""


def evaluate(
    run: str | Path,
    *,
    splits: Sequence[str] | None = None,
    archive: str | Path | None = None,
    progress: bool = False,
    **inference: Unpack[InferenceOptions],
) -> dict[str, Any]:
    """Score a run; write ``evaluation.json`` and the predictions as class-index PNGs.

    Evaluating again replaces both, and removes predictions of images that are no longer in a scored split. The same
    weights and images give the same bytes on one machine. A warning is printed if images have other ingest options
    than the annotated images of the run.

    Args:
        run: A finished fine-tuning run or classifier.
        splits: Splits to score, by default all whose names begin with ``test``. References are never scored.
        archive: Archive of the images, by default the one that the run was trained on.
        progress: Show a progress bar if the output is a terminal.
        inference: Fields of :class:`InferenceConfig`; by default as in the configuration of the run.

    Returns:
        The content of ``evaluation.json``: at the top level the scores of ``test``, or of the first split if ``test``
        is not scored; in ``splits`` the scores of each split, and the Dice and the confusion matrix (rows are true
        classes) of each image.

    Raises:
        UserError: the run is not a finished one that segments, the archive has other classes, or no image can be scored.
    """
    folder, config, predictor = open_run(run, **inference)
    if archive is None and not Path(config.data.archive).exists():
        raise UserError(
            f"{config.data.archive}: the archive that {folder.path} was trained on is not found; name it with "
            "--archive, or run the command in the directory where the training was started"
        )
    source = Archive(archive if archive is not None else config.data.archive)
    collection = same_name(config.references[0].partition("/")[0], source.collections)
    chosen = _scored_images(source, collection, config, splits)
    if ClassList.of(source.collections[collection]) != predictor.classes:
        raise UserError(
            f"{source.path}: the classes of {collection} differ from those that {folder.path} was trained with; "
            "name the right archive with --archive"
        )
    for warning in mismatch_warnings(folder, (record for records in chosen.values() for record in records)):
        print(f"warning: {warning}", file=sys.stderr)
    scored: dict[str, dict[str, Any]] = {}
    home = folder.path / PREDICTIONS
    written: dict[str, dict[str, str]] = {}
    start = time.perf_counter()
    with Progress("evaluate", sum(map(len, chosen.values())), unit="image", show=progress) as bar:
        for split, records in chosen.items():
            name = picture_name(split)
            scored[split], digests = _score(predictor, source, records, home / name, bar)
            written.setdefault(name, {}).update(digests)
    images = sum(map(len, chosen.values()))
    seconds = (time.perf_counter() - start) / images
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
        **predictor.inference.model_dump(),
        "splits": scored,
    }
    write_json(folder.path / EVALUATION_FILE, content)
    folder.update(prediction={"images": images, "seconds_per_image": round(seconds, 3)})
    _update_written(home, written)
    return content


def _score(
    predictor: ImagePredictor, archive: Archive, records: Sequence[ImageRecord], folder: Path, bar: Progress
) -> tuple[dict[str, Any], dict[str, str]]:
    """Segment images, write the PNGs to a folder, and compare them with the masks.

    Returns:
        The scores over all images with those of each (``per_image``), and the SHA-256 of each PNG by file name.
    """
    total = ConfusionMatrix(predictor.classes)
    per_image, digests = [], {}
    folder.mkdir(parents=True, exist_ok=True)
    names = picture_names(record.id for record in records)
    for record in records:
        labels = predictor.archive_image(archive, record.index)
        path, data = folder / f"{names[record.id]}.png", png_bytes(labels)
        write_bytes(path, data)
        digests[path.name] = hashlib.sha256(data).hexdigest()
        single = ConfusionMatrix(predictor.classes)
        single.update(labels, archive.read_mask(record.index))
        total.merge(single)
        scores = single.scores().to_json()
        kept = {key: scores[key] for key in ("mean_dice", "dice", "pixel_accuracy")}
        per_image.append({"id": record.id, **kept, "confusion": single.counts.tolist()})
        bar.advance()
    return {**total.scores().to_json(), "per_image": per_image}, digests


def same_name(name: str, known: Iterable[str]) -> str:
    """The known name that equals ``name`` up to Unicode normalisation (NFC, NFD), preferably exactly; else ``name``."""
    known = list(known)
    if name in known:
        return name
    return next((other for other in known if nfc(other) == nfc(name)), name)


def _update_written(home: Path, written: dict[str, dict[str, str]]) -> None:
    """Remove unchanged PNGs of earlier evaluations from the folders just written, and record the new ones."""
    try:
        before = json.loads((home / WRITTEN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        before = {}
    recorded = {
        folder: {name: digest for name, digest in names.items() if isinstance(digest, str)}
        for folder, names in (before.items() if isinstance(before, dict) else ())
        if isinstance(names, dict)
    }
    for folder in written:
        outdated = recorded.get(folder, {}).keys() - written[folder].keys()
        # Only names from the listing: the record may have been edited.
        for path in [] if (home / folder).is_symlink() else sorted((home / folder).glob("*.png")):
            if path.name not in outdated or path.is_symlink() or not path.is_file():
                continue
            if hashlib.sha256(path.read_bytes()).hexdigest() == recorded[folder][path.name]:
                path.unlink()
    write_json(home / WRITTEN_FILE, {**recorded, **written})


def _scored_images(
    archive: Archive, collection: str, config: SegmentationConfig, splits: Sequence[str] | None
) -> dict[str, list[ImageRecord]]:
    """Annotated images by split, without the references."""
    references = {nfc(name) for name in config.references}
    annotated = [
        record
        for record in archive.select(datasets=[collection], has_mask=True)
        if nfc(record.id) not in references
    ]
    known = sorted({record.split for record in annotated})
    if splits is None:
        splits = [name for name in known if name.startswith(PRIMARY_SPLIT)]
        if not splits:
            named = ", ".join(f"'{name}'" for name in known if name)
            advice = "list some in splits.json, build a new archive and name it with --archive"
            if named:
                advice = f"choose a split with --split: {named}"
            raise UserError(f"{archive.path}: {collection} has no annotated test images; {advice}")
    splits = [same_name(name, known) for name in splits]
    for name in splits:
        if name not in known:
            raise UserError(
                f"--split '{name}': {collection} has no annotated image in this split, apart from references"
                f"{did_you_mean(name, known)}"
            )
    return {name: [record for record in annotated if record.split == name] for name in dict.fromkeys(splits)}
