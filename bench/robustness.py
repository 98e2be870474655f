"""Dice of trained networks on validation images whose illumination, contrast or sharpness is changed.

    python -m bench.robustness runs/studies/one-image --archive alloys.h5 [--methods imagenet-self-training] [--jobs 2]

Each fine-tuning of a finished study is scored by one pass on the validation images of its dataset: as they are, and with
each change of `CHANGES`, after which exposure is standardised again; all without and with `--correct-shading`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bench.inference import open_network, record_networks, scored_images, with_inference
from pscl_hpc.archive import Archive, ImageRecord, Window
from pscl_hpc.segmentation.config import InferenceConfig
from pscl_hpc.segmentation.inference import Predictor
from pscl_hpc.segmentation.metrics import ConfusionMatrix

Image = npt.NDArray[np.float32]
"""(h, w), mean 0 and standard deviation 1."""


def _axes(image: Image) -> tuple[Image, Image]:
    """Row and column of each pixel from -1 to 1, (h, 1) and (1, w)."""
    height, width = image.shape
    return np.linspace(-1, 1, height, dtype="f4")[:, None], np.linspace(-1, 1, width, dtype="f4")[None]


def _vignette(image: Image) -> Image:
    rows, columns = _axes(image)
    return image - 1.5 * (rows**2 + columns**2)


def _ramp(image: Image) -> Image:
    return image + 1.2 * _axes(image)[1]


def _gamma(exponent: float) -> Callable[[Image], Image]:
    """Of grey levels in 0..1, where three standard deviations on either side of the mean fit."""
    return lambda image: np.clip(0.5 + image / 6, 1e-6, 1) ** exponent


def _noise(image: Image) -> Image:
    return image + 0.6 * np.random.default_rng(0).standard_normal(image.shape, "f4")


def _blur(image: Image) -> Image:
    return ndimage.gaussian_filter(image, 1.5)


CHANGES: dict[str, Callable[[Image], Image]] = {
    "none": lambda image: image,
    "vignette": _vignette,
    "ramp": _ramp,
    "gamma 0.5": _gamma(0.5),
    "gamma 2": _gamma(2),
    "noise": _noise,
    "blur": _blur,
}


def main() -> None:
    record_networks("robustness", __doc__, score)


def score(run: Path, archive_path: Path) -> list[dict[str, Any]]:
    """Mean Dice of one run on the validation images of its dataset, by change, without and with shading correction."""
    config, trained = open_network(run)
    with Archive(archive_path) as archive:
        splits = scored_images(archive, config)
        images = [image for split, found in splits.items() if split.startswith("val") for image in found]
        rows = []
        for correct in (False, True):
            predictor = with_inference(trained, InferenceConfig(correct_shading=correct))
            dice = {name: _dice(predictor, archive, images, change) for name, change in CHANGES.items()}
            rows.append({"correct_shading": correct, "images": len(images), "dice": dice})
    return rows


def _dice(
    predictor: Predictor, archive: Archive, images: list[ImageRecord], change: Callable[[Image], Image]
) -> float | None:
    total = ConfusionMatrix(predictor.classes)
    for image in images:
        changed = _standard(change(_standard(archive.read_unit(image.index, channels=1)[0])))
        # As Archive.read_unit standardises.
        pixels = np.clip(0.5 + changed / 6, 0, 1)[None]

        def window(place: Window, pixels: Image = pixels) -> Image:
            top, left, height, width = place
            return pixels[:, top : top + height, left : left + width]

        labels = predictor(window, image.height, image.width)
        total.update(labels, archive.read_mask(image.index))
    return total.scores().mean_dice


def _standard(image: Image) -> Image:
    return (image - image.mean()) / image.std()


if __name__ == "__main__":
    main()
