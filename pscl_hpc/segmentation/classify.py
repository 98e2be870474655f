"""A pixel classifier trained on annotated images, in seconds (docs/protocol.md)."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pscl_hpc.archive import IGNORE_INDEX, Archive
from pscl_hpc.classifiers import (
    CLASSIFIER_FILE,
    FEATURES,
    ClassifierCard,
    FeatureCache,
    FeatureReader,
    FeatureSet,
    PixelClassifier,
    Samples,
)
from pscl_hpc.errors import UserError
from pscl_hpc.progress import Progress
from pscl_hpc.runs import RunFolder
from pscl_hpc.seeding import numpy_generator
from pscl_hpc.segmentation.annotations import Annotations, select_annotations
from pscl_hpc.segmentation.classifier_config import ClassifierConfig
from pscl_hpc.segmentation.ingest_options import UNSEEN_KEY, options_record
from pscl_hpc.training import StopRequested, check_unchanged, read_place, setup_device, stop_reason
from pscl_hpc.working_size import note, working_scale


def train_classifier(config: ClassifierConfig, *, progress: bool = False) -> RunFolder:
    """Train a pixel classifier. An interrupted one starts again; a finished run is returned as it is.

    The log has the steps of the head, and in its last line the accuracy on the pixels it learnt from and the seconds.

    Args:
        config: The run.
        progress: Show a progress bar when the output is a terminal.

    Raises:
        UserError: wrong input, or an archive that has changed since the run began.
        JobError: a file cannot be written.
        StopRequested: it stopped on request; nothing is kept.
    """
    if (ranks := read_place().world) > 1:
        raise UserError(f"a classifier is trained by one process, not {ranks}; start it without torchrun")
    device = setup_device(config.runtime)
    with Archive(config.data.archive) as archive:
        data = check_classifier(config, archive)
        features = FEATURES.implementation(config.features)(config.features, config.pretrained)
        features.to(device)
        folder = RunFolder.start(config, device)
        if folder.done:
            return folder
        with folder:
            check_unchanged(archive, folder, folder.record.get("archive", archive.fingerprint))
            unseen = {UNSEEN_KEY: list(data.unseen)} if data.unseen else {}
            folder.update(archive=archive.fingerprint, **options_record(data.references, ()), **unseen)
            _train(config, archive, data, features, folder, progress=progress)
    return folder


def check_classifier(config: ClassifierConfig, archive: Archive) -> Annotations:
    """The annotated images of a classifier.

    Raises:
        UserError: see :func:`~pscl_hpc.segmentation.annotations.select_annotations`; or they show fewer than two classes.
    """
    data = select_annotations(config, archive)
    if (data.pixels > 0).sum() < 2:
        name = data.classes.names[int(data.pixels.argmax())]
        raise UserError(
            f"references: {', '.join(config.references)} shows one class only ({name}); a classifier needs two: name an "
            "image that shows more"
        )
    return data


def cache_of(config: ClassifierConfig) -> FeatureCache | None:
    """The folder for feature maps of a run."""
    return FeatureCache(Path(config.cache)) if config.cache else None


def _train(
    config: ClassifierConfig,
    archive: Archive,
    data: Annotations,
    features: FeatureSet,
    folder: RunFolder,
    *,
    progress: bool,
) -> None:
    classes = data.classes
    shown = tuple(int(index) for index in np.flatnonzero(data.pixels))
    masks = data.masks(archive, config.square)
    resize = working_scale(config.resize, masks)
    for sentence in (*note(config.resize, resize), *data.warnings()):
        print(sentence, file=sys.stderr)
    card = ClassifierCard(classes.names, classes.background, classes.ignored, shown, resize)
    with Progress("classifier", 2, unit="part", show=progress) as bar:
        start = time.perf_counter()
        reader = FeatureReader(features, cache_of(config), resize=resize)
        samples = _samples(config, archive, data, masks, shown, reader)
        read = time.perf_counter()
        bar.advance("features")
        classifier = PixelClassifier(features, config.head, card)
        step, log = 0, folder.metrics_log()
        log.rewind(0)
        try:
            for step, values in classifier.fit(samples, config.seed):
                log.write(step, values)
                if (reason := stop_reason()) is not None:
                    folder.stop(reason)
                    raise StopRequested(reason, "to start it again, run the same command")
            fitted = time.perf_counter()
            right = classifier.probabilities(samples.features).argmax(dim=1) == samples.labels
            seconds = {
                "features": round((read - start) / len(data.references), 3),
                "head": round(fitted - read, 3),
            }
            values = {"train_accuracy": float((right * samples.weights).mean())}
            log.write(step, values | {f"seconds/{part}": value for part, value in seconds.items()})
        finally:
            log.close()
        bar.advance("head")
    folder.check_owner()
    classifier.save(folder.path / CLASSIFIER_FILE)
    counts = torch.bincount(samples.labels, minlength=len(shown)).tolist()
    folder.update(
        best={"step": step, "mean_dice": None},
        pixels={classes.names[index]: count for index, count in zip(shown, counts, strict=True)},
        seconds=seconds,
    )


def _samples(
    config: ClassifierConfig,
    archive: Archive,
    data: Annotations,
    masks: list[npt.NDArray[np.uint8]],
    shown: tuple[int, ...],
    reader: FeatureReader,
) -> Samples:
    """The drawn pixels of all references with their features."""
    drawn = draw_pixels(masks, shown, config.pixels.per_class, config.seed)
    features: list[Tensor] = []
    labels: list[Tensor] = []
    for record, mask, chosen in zip(data.references, masks, drawn, strict=True):
        for part in reader.parts(archive, record.index):
            (y0, x0, height, width), (top, left) = part.window, part.corner
            rows, columns = np.nonzero(chosen[y0 : y0 + height, x0 : x0 + width])
            found = mask[rows + y0, columns + x0]
            places = (torch.from_numpy(rows + top), torch.from_numpy(columns + left))
            features.append(part.maps.at(*places))
            labels.append(torch.from_numpy(np.searchsorted(shown, found)))
    targets = torch.cat(labels)
    shares = torch.from_numpy(data.pixels[list(shown)] / data.pixels.sum())
    counts = torch.bincount(targets, minlength=len(shown))
    weights = (shares ** (1 - config.pixels.balance) / counts)[targets]
    return Samples(torch.cat(features), targets, (weights / weights.mean()).float(), len(shown))


def draw_pixels(
    masks: list[npt.NDArray[np.uint8]], shown: tuple[int, ...], per_class: int, seed: int
) -> list[npt.NDArray[np.bool_]]:
    """Which pixels of some masks (h, w) to learn from: of each class a random ``per_class``, or all if it has fewer."""
    flat = np.concatenate([mask.reshape(-1) for mask in masks])
    chosen = np.zeros(flat.shape, bool)
    for index in shown:
        assert index != IGNORE_INDEX
        places = np.flatnonzero(flat == index)
        if len(places) > per_class:
            # The smallest random words, not Generator.choice, whose numbers may change between numpy versions.
            words = numpy_generator(seed, "pixels", index).bit_generator.random_raw(len(places))
            places = places[np.argsort(words, kind="stable")[:per_class]]
        chosen[places] = True
    ends = np.cumsum([mask.size for mask in masks])[:-1]
    parts = np.split(chosen, ends)
    return [part.reshape(mask.shape) for part, mask in zip(parts, masks, strict=True)]
