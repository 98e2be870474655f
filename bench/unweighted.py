"""Dice and error of the phase fraction of a study's networks, with class weights as trained and taken out.

    python -m bench.unweighted runs/studies/one-image --archive alloys.h5 [--methods imagenet-self-training] [--jobs 2]

Every network is scored by one pass on the annotated validation and test images of its dataset, without and with
`--unweighted`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bench.inference import open_network, record_networks, scored_images, with_inference
from pscl_hpc.archive import Archive, ImageRecord
from pscl_hpc.segmentation.config import InferenceConfig
from pscl_hpc.segmentation.inference import Predictor
from pscl_hpc.segmentation.metrics import ConfusionMatrix


def main() -> None:
    record_networks("unweighted", __doc__, score)


def score(run: Path, archive_path: Path) -> list[dict[str, Any]]:
    """Scores of one run on each split with annotated images, weighted and unweighted."""
    config, trained = open_network(run)
    with Archive(archive_path) as archive:
        return [
            {
                "split": split,
                "images": len(images),
                "unweighted": unweighted,
                **_scores(with_inference(trained, InferenceConfig(unweighted=unweighted)), archive, images),
            }
            for split, images in scored_images(archive, config).items()
            for unweighted in (False, True)
        ]


def _scores(predictor: Predictor, archive: Archive, images: list[ImageRecord]) -> dict[str, Any]:
    """Dice, and the mean over images and foreground classes of the error of the phase fraction, a share of the area."""
    total, errors = ConfusionMatrix(predictor.classes), []
    for image in images:
        one = ConfusionMatrix(predictor.classes)
        one.update(predictor.archive_image(archive, image.index), archive.read_mask(image.index))
        total.merge(one)
        error = np.abs(one.counts.sum(axis=0) - one.counts.sum(axis=1)) / one.counts.sum()
        errors.append(error[list(predictor.classes.foreground)].mean())
    scores = total.scores()
    return {"mean_dice": scores.mean_dice, "dice": scores.dice, "fraction_error": float(np.mean(errors))}


if __name__ == "__main__":
    main()
