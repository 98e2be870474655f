"""Dice of the networks of `bench.recipe` on validation images that are taken worse than they are.

    python -m bench.robustness ARCHIVE FOLDER [TRIAL ...]

FOLDER has finished trials of `bench.recipe`. Each network is scored by one pass on the validation images of its collection:
as they are, and with each change of `CHANGES`, after which exposure is standardised again. How much a recipe loses under
changes that it was not made for says how it fares on the images of another instrument.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from bench.recipe import IMAGES, TRIALS, read
from bench.record import record
from pscl_hpc.archive import Archive, ImageRecord
from pscl_hpc.segmentation.config import FinetuneConfig
from pscl_hpc.segmentation.evaluate import open_run
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


def _flat(image: Image) -> Image:
    """As a secondary-electron image, in which large phases have nearly the same grey level."""
    return image - 0.7 * ndimage.gaussian_filter(image, 30)


def _relief(image: Image) -> Image:
    """Light from one corner on a deeply etched surface."""
    smooth = ndimage.gaussian_filter(image, 1)
    return 0.5 * image + np.roll(smooth, (2, 2), (0, 1)) - smooth


CHANGES: dict[str, Callable[[Image], Image]] = {
    "none": lambda image: image,
    "vignette": _vignette,
    "ramp": _ramp,
    "gamma 0.5": _gamma(0.5),
    "gamma 2": _gamma(2),
    "noise": _noise,
    "blur": _blur,
    "flat": _flat,
    "relief": _relief,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path)
    parser.add_argument("folder", type=Path, help="of finished trials")
    parser.add_argument("trials", nargs="*", metavar="TRIAL", help="all in FOLDER by default")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for path in sorted(arguments.folder.glob("*/trial.json")):
        trial = read(path.parent)
        if trial["trial"] in (arguments.trials or TRIALS):
            dice = score(path.parent, arguments.archive)
            rows.append({"trial": trial["trial"], "image": trial["image"], "dice": dice})
            print(rows[-1], flush=True)
    rows.sort(key=lambda row: (list(TRIALS).index(row["trial"]), IMAGES.index(row["image"])))
    trials = "".join(f' "{trial}"' for trial in arguments.trials)
    command = f"python -m bench.robustness ARCHIVE FOLDER{trials}"
    print(record("recipe-robustness", {"rows": rows}, command=command))


def score(run: Path, archive_path: Path) -> dict[str, float | None]:
    """Mean Dice on the validation images of a run's collection, by change."""
    _, config, trained = open_run(run)
    assert isinstance(config, FinetuneConfig)
    assert isinstance(trained, Predictor)
    predictor = Predictor(
        trained.net, trained.classes, trained.device, runtime=trained.runtime, resize=trained.resize
    )
    dataset = config.references[0].partition("/")[0]
    with Archive(archive_path) as archive:
        images = archive.select(datasets=[dataset], splits=["val"], has_mask=True)
        return {name: _dice(predictor, archive, images, change) for name, change in CHANGES.items()}


def _dice(
    predictor: Predictor, archive: Archive, images: list[ImageRecord], change: Callable[[Image], Image]
) -> float | None:
    total = ConfusionMatrix(predictor.classes)
    for image in images:
        grey = archive.read_unit(image.index, channels=1)[0]
        changed = _standard(change(_standard(grey)))
        # As Archive.read_unit standardises.
        pixels = np.clip(0.5 + changed / 6, 0, 1)[None]

        def window(place: tuple[int, int, int, int], pixels: Image = pixels) -> Image:
            top, left, height, width = place
            return pixels[:, top : top + height, left : left + width]

        labels = predictor(window, image.height, image.width)
        total.update(labels, archive.read_mask(image.index))
    return total.scores().mean_dice


def _standard(image: Image) -> Image:
    return (image - image.mean()) / image.std()


if __name__ == "__main__":
    main()
