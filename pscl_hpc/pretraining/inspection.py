"""Pictures of a pretrained trunk for the report: sampled patches, feature maps, pictures of the method.

Written to ``inspection.npz``. Shape legend: n images, T templates, H_s W_s patches of scale s.

``images`` (n, h, w) uint8, view k in grey; ``references`` of them come first. ``labels`` (n, h, w) uint8, masks in
view k, 255 unknown. ``ids`` (n,), ``classes`` (C,). Per scale s: ``patches{s}`` (n, T, 2) row and column, -1 for none;
``grid{s}`` (2,); ``class{s}`` (T,); ``purity{s}`` (n,), NaN unknown; ``pca{s}`` (n, H_s, W_s, 3) uint8.
``picture-{name}`` (n, h, w) uint8: from :meth:`Method.pictures`, in grey, in view q.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from pscl_hpc.archive import IGNORE_INDEX
from pscl_hpc.files import replacing, writing
from pscl_hpc.methods import Method, Views, patch_purity
from pscl_hpc.pretraining.data import Batch, PretrainData, make_views
from pscl_hpc.seeding import Draws, Slots
from pscl_hpc.views import warp

INSPECTION_FILE = "inspection.npz"
_IMAGES = 6
_MAP_SIDE = 192
"""Longest side of a stored colour map; larger maps are averaged down."""


@torch.no_grad()
def inspect_run(method: Method, data: PretrainData, folder: Path, device: torch.device) -> Path:
    """Sample a few images with the trained method and write ``inspection.npz``.

    Raises:
        JobError: it cannot be written.
    """
    batch = _first_images(data)
    views = make_views(batch, data.config, 0, device)
    # In training mode maps come from batch statistics, as in the training steps.
    method.train()
    state = {key: value.clone() for key, value in method.state_dict().items()}
    key = method.trunk(views.key)
    draws = Draws(data.config.seed, 0, batch.slots.places, device)
    samples = method.sample_patches(views, method.key_features(views), draws)
    pictures = method.pictures(views, draws)
    method.load_state_dict(state)
    annotated = data.setting.annotated
    arrays: dict[str, npt.NDArray[Any]] = {
        "images": _to_bytes(views.key.mean(dim=1)),
        "labels": _warp_labels(views),
        "references": np.array(views.references),
        "ids": np.array(batch.ids),
        "classes": np.array(annotated.classes if annotated else method.class_names),
        **{f"picture-{name}": _to_bytes(images.mean(dim=1)) for name, images in pictures.items()},
    }
    for scale, features in enumerate(key.scales):
        height, width = features.shape[2:]
        arrays[f"grid{scale}"] = np.array([height, width])
        arrays[f"pca{scale}"] = _colour_map(features)
        if samples:
            sample = samples[scale]
            patches = torch.stack((sample.key_patches // width, sample.key_patches % width), dim=-1)
            patches[~sample.valid] = -1
            arrays[f"patches{scale}"] = patches.cpu().numpy().astype(np.int32)
            arrays[f"class{scale}"] = sample.classes.cpu().numpy().astype(np.int32)
            arrays[f"purity{scale}"] = (
                patch_purity(views, sample, height, width).cpu().numpy().astype(np.float32)
            )
    path = folder / INSPECTION_FILE
    with writing(path), replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return path


def _first_images(data: PretrainData) -> Batch:
    """The references and a few images, those of the references' collection first."""
    batch = data[0]
    home = batch.comparable.clone()
    home[: batch.references] = True
    order = [*range(batch.references)]
    others = list(range(batch.references, len(batch.ids)))
    order += sorted(others, key=lambda i: not bool(home[i]))[: max(2, _IMAGES - batch.references)]
    pick = torch.tensor(order)
    return Batch(
        batch.images[pick],
        batch.labels[pick],
        batch.comparable[pick],
        batch.references,
        batch.production_batches[pick],
        Slots(tuple(batch.slots.places[i] for i in order), batch.slots.total),
        tuple(batch.ids[i] for i in order),
    )


def _warp_labels(views: Views) -> npt.NDArray[np.uint8]:
    """Masks in view k: the class with the largest share after warping the one-hot masks."""
    labels = views.labels.long()
    classes = int(torch.where(labels == IGNORE_INDEX, 0, labels).max()) + 1
    shares = F.one_hot(torch.where(labels == IGNORE_INDEX, classes, labels), classes + 1)
    winner = warp(shares.permute(0, 3, 1, 2).float(), views.geometry).argmax(dim=1)
    found: npt.NDArray[np.uint8] = (
        torch.where(winner == classes, IGNORE_INDEX, winner).to(torch.uint8).cpu().numpy()
    )
    return found


def _colour_map(features: Tensor) -> npt.NDArray[np.uint8]:
    """First three principal components of a map's patches over all images, (n, H, W, 3), each stretched to 1-99%."""
    features = features.float()
    side = max(features.shape[2:])
    if side > _MAP_SIDE:
        features = F.avg_pool2d(features, -(-side // _MAP_SIDE))
    count, channels, height, width = features.shape
    patches = features.permute(0, 2, 3, 1).reshape(-1, channels).double()
    patches = patches - patches.mean(dim=0)
    _, vectors = torch.linalg.eigh(patches.T @ patches)
    axes = vectors[:, -3:].flip(1)
    # The sign of an axis is arbitrary: its largest entry is made positive.
    axes = axes * axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
    colours = patches @ axes
    if colours.shape[1] < 3:
        colours = F.pad(colours, (0, 3 - colours.shape[1]))
    low, high = (
        torch.from_numpy(np.quantile(colours.cpu().numpy(), q, axis=0)).to(colours) for q in (0.01, 0.99)
    )
    return _to_bytes(((colours - low) / (high - low).clamp_min(1e-12)).view(count, height, width, 3))


def _to_bytes(values: Tensor) -> npt.NDArray[np.uint8]:
    found: npt.NDArray[np.uint8] = (values.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return found
