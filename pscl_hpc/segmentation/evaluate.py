"""Scores of a fine-tuned run or a classifier on the annotated images of a split."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, Unpack
from unicodedata import normalize

import numpy as np
import numpy.typing as npt
from torch import nn

from pscl_hpc.archive import Archive, ImageRecord
from pscl_hpc.classifiers import load_classifier
from pscl_hpc.errors import UserError, did_you_mean
from pscl_hpc.files import write_bytes, write_json
from pscl_hpc.models import load_segmentation
from pscl_hpc.progress import Progress
from pscl_hpc.runs import RunFolder
from pscl_hpc.segmentation.classes import ClassList
from pscl_hpc.segmentation.classifier_config import ClassifierConfig
from pscl_hpc.segmentation.classifier_inference import ClassifierPredictor
from pscl_hpc.segmentation.classify import cache_of
from pscl_hpc.segmentation.config import FinetuneConfig, InferenceConfig, InferenceOptions
from pscl_hpc.segmentation.inference import Predictor
from pscl_hpc.segmentation.ingest_options import mismatch_warnings, unseen_classes
from pscl_hpc.segmentation.metrics import ConfusionMatrix
from pscl_hpc.segmentation.pictures import picture_name, picture_names, png_bytes
from pscl_hpc.training import setup_device

EVALUATION_FILE = "evaluation.json"
PREDICTIONS = "predictions"
WRITTEN_FILE = "written.json"
"""In ``predictions``: SHA-256 of each PNG that evaluations wrote, by folder and file name."""
PRIMARY_SPLIT = "test"
"""The split whose scores are at the top level of evaluation.json if it is scored."""


SegmentationConfig = FinetuneConfig | ClassifierConfig
"""The configuration of a run that segments."""


class ImagePredictor(Protocol):
    """Segments images: a network or a pixel classifier."""

    @property
    def classes(self) -> ClassList: ...

    @property
    def inference(self) -> InferenceConfig: ...

    def archive_image(
        self, archive: Archive, index: int, *, confidence: npt.NDArray[np.uint8] | None = None
    ) -> npt.NDArray[np.uint8]:
        """Class indices (h, w) of an archive image; ``confidence`` (h, w) is filled with the probability of the
        predicted class, 0 to 255."""


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
            total = ConfusionMatrix(predictor.classes)
            per_image = []
            digests = written.setdefault(picture_name(split), {})
            (home / picture_name(split)).mkdir(parents=True, exist_ok=True)
            names = picture_names(record.id for record in records)
            for record in records:
                labels = predictor.archive_image(source, record.index)
                path, data = home / picture_name(split) / f"{names[record.id]}.png", png_bytes(labels)
                write_bytes(path, data)
                digests[path.name] = hashlib.sha256(data).hexdigest()
                single = ConfusionMatrix(predictor.classes)
                single.update(labels, source.read_mask(record.index))
                total.merge(single)
                scores = single.scores().to_json()
                keys = ("mean_dice", "dice", "pixel_accuracy")
                per_image.append(
                    {
                        "id": record.id,
                        **{key: scores[key] for key in keys},
                        "confusion": single.counts.tolist(),
                    }
                )
                bar.advance()
            scored[split] = {**total.scores().to_json(), "per_image": per_image}
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


def open_run(
    run: str | Path, **options: Unpack[InferenceOptions]
) -> tuple[RunFolder, SegmentationConfig, ImagePredictor]:
    """A fine-tuned run or a classifier, its configuration, and its predictor on the best available device.

    Args:
        run: The run folder.
        options: Fields of :class:`InferenceConfig`; by default as in the configuration of the run.

    Raises:
        UserError: the folder is not a run that segments, has no model, or ``adapt`` is out of range, given for a
            classifier, or has nothing to change in its network.
    """
    adapt = options.get("adapt")
    if adapt is not None and not 0 <= adapt <= 1:
        raise UserError(f"--adapt is {adapt:g}; give a number from 0 (no adaptation) to 1")
    folder = RunFolder.load(run)
    config = folder.decided_config
    if not isinstance(config, SegmentationConfig):
        raise UserError(f"{folder.path}: is a {config.kind} run; name a fine-tuning run or a classifier")
    given = {key: value for key, value in options.items() if value is not None}
    inference = default_inference(config).model_copy(update=given)
    if isinstance(config, ClassifierConfig):
        return folder, config, _open_classifier(folder, config, inference)
    net, card = load_segmentation(folder.path)
    # The run's own number of threads is that of the machine on which it was trained.
    runtime = config.runtime.model_copy(update={"device": "auto", "threads": folder.config.runtime.threads})
    device = setup_device(runtime)
    if inference.adapt and not any(isinstance(layer, nn.BatchNorm2d) for layer in net.modules()):
        raise UserError(f"{folder.path}: its network has no batch normalisation to adapt; use --adapt 0")
    predictor = Predictor(
        net.to(device),
        ClassList.of(card),
        device,
        runtime=runtime,
        inference=inference,
        resize=card.resize,
        unseen=unseen_classes(folder),
    )
    return folder, config, predictor


def default_inference(config: SegmentationConfig) -> InferenceConfig:
    """How a run segments images when the command does not say."""
    return config.inference if isinstance(config, FinetuneConfig) else InferenceConfig()


def _open_classifier(
    folder: RunFolder, config: ClassifierConfig, inference: InferenceConfig
) -> ClassifierPredictor:
    if inference.adapt:
        raise UserError(
            f"--adapt changes the batch normalisation of a network, but {folder.path} is a pixel classifier, which "
            "standardises every image; leave it out"
        )
    if inference.correct_shading:
        raise UserError(f"{folder.path}: is a pixel classifier, which has no --correct-shading; leave it out")
    if inference.tta == "scales":
        raise UserError(f"{folder.path}: is a pixel classifier, which has --tta rotations, but not scales")
    classifier = load_classifier(folder.path)
    classifier.features.to(setup_device(config.runtime.model_copy(update={"device": "auto"})))
    home = str(folder.record.get("archive") or "")
    return ClassifierPredictor(classifier, cache=cache_of(config), home=home, inference=inference)


def same_name(name: str, known: Iterable[str]) -> str:
    """The known name that equals ``name`` up to Unicode normalisation (NFC, NFD), preferably exactly; else ``name``."""
    known = list(known)
    if name in known:
        return name
    return next((other for other in known if normalize("NFC", other) == normalize("NFC", name)), name)


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
    references = {normalize("NFC", name) for name in config.references}
    annotated = [
        record
        for record in archive.select(datasets=[collection], has_mask=True)
        if normalize("NFC", record.id) not in references
    ]
    known = sorted({record.split for record in annotated})
    if splits is None:
        splits = [name for name in known if name.startswith(PRIMARY_SPLIT)]
        if not splits:
            named = ", ".join(f"'{name}'" for name in known if name)
            advice = f"choose a split with --split: {named}" if named else "list some in splits.json"
            raise UserError(f"{archive.path}: {collection} has no annotated test images; {advice}")
    splits = [same_name(name, known) for name in splits]
    for name in splits:
        if name not in known:
            raise UserError(
                f"--split '{name}': {collection} has no annotated image in this split, apart from references"
                f"{did_you_mean(name, known)}"
            )
    return {name: [record for record in annotated if record.split == name] for name in dict.fromkeys(splits)}
