"""Which training image is best to annotate: what each leads to, and what rules that see no mask choose.

    python -m bench.suggest ARCHIVE [--cache FOLDER] [--datasets NAME ...]

Each annotated training image alone trains a pixel classifier: ridge regression on 512 random rectified features (an extreme
learning machine, Huang et al. 2006) of filters of the standardised image, without and with frozen ImageNet features of the
image at twice its size. Its solution is exact, so an image takes less than a second. It is scored on the other
training and the validation images, and on every test split of its dataset. Rules that see no mask then order the images.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial.distance import cdist
from torch import Tensor
from torch.nn import functional as F

from bench.record import record
from pscl_hpc.archive import IGNORE_INDEX, Archive, ImageRecord
from pscl_hpc.classifiers.features.filters import FilterSettings, filter_count, filter_maps
from pscl_hpc.files import write_json
from pscl_hpc.models import TRUNKS, Trunk, build_trunk
from pscl_hpc.seeding import numpy_generator, torch_generator
from pscl_hpc.segmentation import ClassList, ConfusionMatrix
from pscl_hpc.suggestion import FILTERS, IMAGENET, dense_features
from pscl_hpc.suggestion.coverage import measure
from pscl_hpc.suggestion.patches import ImagePatches, read_patches
from pscl_hpc.suggestion.textures import clusters, shares

KINDS = ("filters", "filters + ImageNet")
HIDDEN, RIDGE = 512, 1e-3
STRIDE, STEP = 2, 4
"""Every fourth pixel of every second row and column is used, for training and for scores."""
NEVER = 10.0
"""Is subtracted from the score of a class that the annotated image does not show."""


class Features:
    """Features of images at every second pixel, cached as files."""

    def __init__(self, archive: Archive, folder: Path) -> None:
        self.archive, self.folder = archive, folder
        folder.mkdir(parents=True, exist_ok=True)
        self._trunk: Trunk | None = None

    def read(self, image: ImageRecord) -> Tensor:
        """(pixels, filters + 192), in the order of the rows."""
        path = self.folder / f"{image.id.replace('/', '__')}.npy"
        if not path.exists():
            np.save(path, self._compute(image))
        return torch.from_numpy(np.load(path, mmap_mode="r")[::STEP].astype(np.float32))

    def _compute(self, image: ImageRecord) -> npt.NDArray[np.float16]:
        pixels = self.archive.read_unit(image.index, standardise=True)
        (filters,) = filter_maps(torch.from_numpy(pixels), FilterSettings()).maps
        maps = [filters[:, ::STRIDE, ::STRIDE].float()]
        maps += self._imagenet(torch.from_numpy(pixels)[None], maps[0].shape[1:])
        return torch.cat(maps).flatten(1).T.contiguous().numpy().astype(np.float16)

    @torch.inference_mode()
    def _imagenet(self, pixels: Tensor, size: torch.Size) -> list[Tensor]:
        """Stem and blocks 0, 2, 4 and 7 of EfficientNet-Lite0 at the pixels that are used."""
        if self._trunk is None:
            self._trunk = build_trunk(
                TRUNKS.config("efficientnet-lite0").model_validate({"name": "efficientnet-lite0"})
            ).eval()
        double = F.interpolate(pixels, scale_factor=2, mode="bilinear", align_corners=False)
        x = self._trunk.encoder["stem"](self._trunk.normalise(double))
        maps = [x]
        for number, block in enumerate(self._trunk.encoder["blocks"][:8]):
            x = block(x)
            if number in (0, 2, 4, 7):
                maps.append(x)
        return [F.interpolate(m, size=tuple(size), mode="bilinear", align_corners=False)[0] for m in maps]


def mask_of(archive: Archive, image: ImageRecord, classes: ClassList) -> npt.NDArray[np.uint8]:
    """Class indices of the pixels that are used, 255 for those that are not trained or scored."""
    mask = classes.without_ignored(archive.read_mask(image.index))[::STRIDE, ::STRIDE]
    return np.ascontiguousarray(mask.reshape(-1)[::STEP])


def fit(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Ridge regression from random features (n, h) to one-hot labels (n,): (h, classes).

    Pixels are weighted by the share of their class to the power -0.5, at most 10. A class that the image does not show is
    never predicted.
    """
    known = labels != IGNORE_INDEX
    features, labels = features[known], labels[known]
    share = torch.bincount(labels, minlength=classes) / len(labels)
    weighted = features * share.clamp_min(1e-9).rsqrt().clamp_max(10)[labels, None]
    gram = weighted.T @ features
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    target = weighted.T @ F.one_hot(labels, classes).float()
    solution = torch.linalg.solve(gram.double(), target.double()).float()
    solution[-1, share == 0] = -NEVER
    return solution


def random_features(images: dict[str, Tensor], train_on: list[ImageRecord], seed: int) -> dict[str, Tensor]:
    """Random rectified features (n, 512) and a constant of each image's features, standardised over training images."""
    sample = torch.cat([images[image.id][::8] for image in train_on])
    mean, deviation = sample.mean(dim=0), sample.std(dim=0).clamp_min(1e-3)
    random = torch_generator(seed, "hidden")
    weight = torch.randn(len(mean), HIDDEN, generator=random) / len(mean) ** 0.5
    bias = torch.randn(HIDDEN, generator=random) / 2
    return {
        name: F.pad((((values - mean) / deviation).clamp(-5, 5) @ weight + bias).relu(), (0, 1), value=1.0)
        for name, values in images.items()
    }


def dice_of_each(archive: Archive, dataset: str, features: Features, seed: int) -> list[dict[str, Any]]:
    """Mean foreground Dice of each training image alone: on the other training images and the validation images
    (``rest``), and on each test split."""
    classes = ClassList.of(archive.collections[dataset])
    annotated = archive.select(datasets=[dataset], has_mask=True)
    train_on = [image for image in annotated if image.split == "train"]
    plain = {image.id: features.read(image) for image in annotated}
    masks = {image.id: mask_of(archive, image, classes) for image in annotated}
    found: list[dict[str, Any]] = [{"image": image.id, "dice": {}} for image in train_on]
    for kind in KINDS:
        hidden = random_features({name: x[:, : _width(kind)] for name, x in plain.items()}, train_on, seed)
        for row in found:
            name = row["image"]
            solution = fit(hidden[name], torch.from_numpy(masks[name]).long(), classes.count)
            matrices: dict[str, ConfusionMatrix] = {}
            for image in annotated:
                if image.id != name:
                    split = "rest" if image.split in ("train", "val") else image.split
                    matrix = matrices.setdefault(split, ConfusionMatrix(classes))
                    matrix.update((hidden[image.id] @ solution).argmax(dim=1).numpy(), masks[image.id])
            row["dice"][kind] = {
                split: matrix.scores().mean_dice for split, matrix in sorted(matrices.items())
            }
    return found


def _width(kind: str) -> int | None:
    return filter_count(FilterSettings()) if kind == KINDS[0] else None


def orders(images: list[ImagePatches], seed: int) -> dict[str, list[str]]:
    """Training images by each rule, the most recommended first.

    ``equal textures`` is the rule of `pscl-hpc archive suggest`: the mean distance of all patches to the nearest patch of
    the image, where each cluster of patches has the same weight. In ``nearest patch`` each patch has the same weight.
    ``medoid`` is the energy distance of the image's patches to all patches. ``rare textures`` is the mean over 32 clusters
    of the cluster's share in the image as a part of its share in all images, at most 1.
    """
    nearness = measure(images, seed)
    sample = [
        image.vectors[numpy_generator(seed, image.record.id).permutation(len(image.vectors))[:256]]
        for image in images
    ]
    distances = np.array([[cdist(a, b).mean() for b in sample] for a in sample])
    centres = clusters(np.concatenate(sample), 32, numpy_generator(seed, "clusters"))
    share = shares(images, centres)
    scores = {
        "equal textures": nearness.distances @ nearness.weights,
        "nearest patch": nearness.distances.mean(axis=1),
        "medoid": 2 * distances.mean(axis=1) - np.diag(distances),
        "rare textures": -np.minimum(1, share / np.maximum(share.mean(axis=0), 1e-9)).mean(axis=1),
    }
    return {
        rule: [images[place].record.id for place in np.argsort(score, kind="stable")]
        for rule, score in scores.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path)
    parser.add_argument("--datasets", nargs="*", help="collections; all with training masks by default")
    parser.add_argument("--cache", type=Path, default=Path("runs/suggest"), help="folder of finished parts")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    archive = Archive(arguments.archive)
    features = Features(archive, arguments.cache / "features")
    annotated = {image.dataset for image in archive.select(splits=["train"], has_mask=True)}
    found = []
    for name in arguments.datasets or sorted(annotated):
        entry: dict[str, Any] = {"dataset": name, "orders": {}}
        for kind in (IMAGENET, FILTERS):
            path = arguments.cache / f"orders-{name}-{kind}-{arguments.seed}.json"
            if not path.exists():
                train_on = archive.select(datasets=[name], splits=["train"])
                images = read_patches(archive, train_on, dense_features(kind))
                write_json(path, orders(images, arguments.seed))
            entry["orders"][kind] = json.loads(path.read_text())
        path = arguments.cache / f"dice-{name}-{arguments.seed}.json"
        if not path.exists():
            write_json(path, dice_of_each(archive, name, features, arguments.seed))
        found.append(entry | {"images": json.loads(path.read_text())})
    content = {"archive": archive.fingerprint, "seed": arguments.seed, "datasets": found}
    print(record("suggest", content, command="python -m bench.suggest ARCHIVE"))


if __name__ == "__main__":
    main()
