"""A trained run that segments, a network or a pixel classifier, opened with its predictor."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, Unpack

import numpy as np
import numpy.typing as npt

from pscl_hpc.archive import Archive
from pscl_hpc.classifiers import load_classifier
from pscl_hpc.errors import UserError
from pscl_hpc.models import load_segmentation
from pscl_hpc.runs import RunFolder
from pscl_hpc.segmentation.classes import ClassList
from pscl_hpc.segmentation.classifier_config import ClassifierConfig
from pscl_hpc.segmentation.classifier_inference import ClassifierPredictor
from pscl_hpc.segmentation.classify import cache_of
from pscl_hpc.segmentation.config import FinetuneConfig, InferenceConfig, InferenceOptions
from pscl_hpc.segmentation.inference import Predictor, batch_norms
from pscl_hpc.segmentation.ingest_options import unseen_classes
from pscl_hpc.training import setup_device

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
    if adapt and not batch_norms(net):
        raise UserError(f"{folder.path}: its network has no batch normalisation to adapt; use --adapt 0")
    if inference.unweighted and not card.class_weights:
        raise UserError(
            f"{folder.path}: its model file has no class weights to take out; leave --unweighted out"
        )
    if inference.unweighted and not all(card.class_weights):
        raise UserError(
            f"{folder.path}: a class weight of its training is 0, which --unweighted cannot take out"
        )
    predictor = Predictor(
        net.to(device),
        ClassList.of(card),
        device,
        runtime=runtime,
        inference=inference,
        resize=card.resize,
        unseen=unseen_classes(folder),
        class_weights=card.class_weights,
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
    if inference.unweighted:
        raise UserError(f"{folder.path}: is a pixel classifier, which has no --unweighted; leave it out")
    if inference.tta == "scales":
        raise UserError(f"{folder.path}: is a pixel classifier, which has --tta rotations, but not scales")
    classifier = load_classifier(folder.path)
    classifier.features.to(setup_device(config.runtime.model_copy(update={"device": "auto"})))
    home = str(folder.record.get("archive") or "")
    return ClassifierPredictor(classifier, cache=cache_of(config), home=home, inference=inference)
