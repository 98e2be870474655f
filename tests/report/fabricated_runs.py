"""Run folders made without training: procedural two-particle alloys, plausible curves, predictions, inspection."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom

from pscl_hpc.archive import Archive, Collection, ShardWriter
from pscl_hpc.segmentation import ClassList
from pscl_hpc.segmentation.config import FinetuneConfig
from pscl_hpc.segmentation.metrics import ConfusionMatrix
from pscl_hpc.segmentation.pictures import picture_name

CLASSES = ("matrix", "network", "particle", "defect")
COLLECTION = "synthetic_alloy"
START = 1_760_000_000.0

Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Alloy:
    """An archive and the pixels that went in."""

    archive: Path
    images: dict[str, npt.NDArray[np.uint8]]
    masks: dict[str, Labels]
    tests: tuple[str, ...]
    references: tuple[str, ...]
    classes: tuple[str, ...]


def micrograph(seed: int, height: int = 200, width: int = 240) -> tuple[npt.NDArray[np.uint8], Labels]:
    """Grey image (h, w) and mask (h, w): matrix, a network of a second phase, particles, rare defects."""
    rng = np.random.default_rng(seed)

    def smooth(sigma: float) -> npt.NDArray[np.float64]:
        field = gaussian_filter(rng.standard_normal((height, width)), sigma, mode="wrap")
        return field / field.std()

    mask = np.zeros((height, width), np.uint8)
    mask[np.abs(smooth(9)) < 0.16] = 1
    mask[smooth(3.2) > 1.75] = 2
    mask[smooth(6) > 2.9] = 3
    level = np.array([96.0, 158.0, 205.0, 32.0])[mask]
    image = gaussian_filter(level, 0.8) + 9 * smooth(30) + 7 * rng.standard_normal(mask.shape)
    return np.clip(image, 0, 255).astype(np.uint8), mask


def make_alloy(
    folder: Path,
    *,
    tests: int = 5,
    references: int = 2,
    classes: Sequence[str] = CLASSES,
    suffix: str = "",
    size: tuple[int, int] = (200, 240),
) -> Alloy:
    """An archive with ``references`` training images, ``tests`` test images and one validation image, all annotated."""
    images, masks = {}, {}
    names = [f"{COLLECTION}/train{i}{suffix}" for i in range(references)]
    names += [f"{COLLECTION}/test{i}{suffix}" for i in range(tests)]
    names.append(f"{COLLECTION}/val0{suffix}")
    splits = ["train"] * references + ["test"] * tests + ["val"]
    path = folder / "alloys.h5"
    collection = Collection(COLLECTION, tuple(classes), references=tuple(names[:references]))
    with ShardWriter(path, [collection]) as writer:
        for seed, name in enumerate(names):
            images[name], masks[name] = micrograph(seed, *size)
            writer.add(images[name], mask=masks[name], id=name, dataset=COLLECTION, split=splits[seed])
    return Alloy(path, images, masks, tuple(names[references:-1]), tuple(names[:references]), tuple(classes))


def degrade(mask: Labels, amount: float, seed: int) -> Labels:
    """A mask as a network might predict it: boundaries moved, small regions lost."""
    rng = np.random.default_rng(seed)
    noise = np.stack(
        [gaussian_filter(rng.standard_normal(mask.shape), 3, mode="wrap") * 3 * amount for _ in range(4)]
    )
    shares = np.stack([gaussian_filter((mask == index).astype(np.float64), 1.5) for index in range(4)])
    return (shares + noise).argmax(axis=0).astype(np.uint8)


def make_pretraining(
    folder: Path,
    alloy: Alloy,
    *,
    status: str = "done",
    lines: int = 120,
    inspection: bool = True,
    **extra: Any,
) -> Path:
    """A PSCL-SimCLR run with one restart."""
    config = {
        "kind": "pretrain",
        "name": folder.name,
        "seed": 10,
        "data": {"archive": str(alloy.archive)},
        "method": {"name": "pscl-simclr", "reference": {"ids": [alloy.references[0]]}},
        "batch_size": 8,
        "schedule": {"steps": lines * 10},
    }
    restart = lines // 2
    rng = np.random.default_rng(3)
    rows = []
    for index in range(lines):
        step = 10 * (index + 1)
        fall = float(np.exp(-step / 300))
        row: dict[str, Any] = {"step": step, "time": START + 4 * index + (3600 if index >= restart else 0)}
        for scale, base in enumerate((3.1, 3.8, 4.5)):
            row[f"scale{scale}/loss"] = base + 1.4 * fall + 0.06 * rng.standard_normal()
            row[f"scale{scale}/positive"] = 0.93 - 0.4 * fall + 0.01 * rng.standard_normal()
            row[f"scale{scale}/negative"] = 0.62 + 0.25 * fall + 0.02 * rng.standard_normal()
            row[f"scale{scale}/purity"] = (
                None if index == 3 else 0.9 - 0.06 * scale - 0.4 * fall + 0.03 * rng.standard_normal()
            )
            row[f"scale{scale}/templates"] = 16 * 2**scale - (1 if index % 3 else 0)
        row["image/loss"] = 1.6 + 0.9 * fall + 0.05 * rng.standard_normal()
        row["loss"] = 0.3 * row["image/loss"] + 0.7 * row["scale1/loss"]
        row["gradient_norm"] = 0.8 + fall + 0.1 * rng.random()
        row |= {"lr": 1e-4, "images_per_second": 6.2 + 0.2 * rng.standard_normal(), "memory_mb": 1830}
        rows.append(row)
    started = {0: START - 2, rows[restart - 1]["step"]: START + 4 * restart + 3600 - 3}
    _write(folder, config, rows, status, started, **extra)
    if inspection:
        write_inspection(folder / "inspection.npz", alloy)
    return folder


def make_finetuning(
    folder: Path,
    alloy: Alloy,
    *,
    reference: int = 0,
    pretrained: str = "",
    amount: float = 0.5,
    status: str = "done",
    evaluated: bool = True,
    **extra: Any,
) -> Path:
    """A fine-tuning run whose predictions are the masks degraded by ``amount``."""
    config = {
        "kind": "finetune",
        "seed": 10,
        "data": {"archive": str(alloy.archive)},
        "references": [alloy.references[reference]],
        "pretrained": pretrained,
        "schedule": {"steps": 300},
    }
    # As the program writes it: with all defaults.
    config = FinetuneConfig.model_validate(config).model_dump(mode="json") | {"name": folder.name}
    rng = np.random.default_rng(reference)
    rows: list[dict[str, Any]] = []
    for index in range(30):
        fall = float(np.exp(-index / 8))
        rows.append(
            {
                "step": 10 * (index + 1),
                "time": START + 5000 + index,
                "loss": 0.2 + 0.6 * fall + 0.02 * rng.standard_normal(),
                "ce": 0.2 + 0.9 * fall,
                "dice_loss": 0.25 + 0.5 * fall,
                "lr": 1e-3,
                "encoder/lr": 1e-4,
                "images_per_second": 11.0 + rng.random(),
            }
        )
        if index % 5 == 4:
            score = 0.75 - 0.4 * amount * (1 + fall)
            rows.append(
                {"step": 10 * (index + 1), "time": START + 5000 + index, "val/mean_dice": score}
                | {f"val/dice/{name}": score + 0.06 * (i - 1) for i, name in enumerate(alloy.classes[1:])}
                | {"val/mean_iou": score - 0.1, "val/pixel_accuracy": 0.9 - 0.1 * fall}
            )
    _write(folder, config, rows, status, {0: START + 4990}, **extra)
    if evaluated:
        _write_evaluation(folder, alloy, config, amount)
    return folder


def configure(run: Path, /, **settings: Any) -> Path:
    """Change top-level keys of a run's configuration."""
    file = run / "config.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | settings), encoding="utf-8")
    return run


def write_inspection(path: Path, alloy: Alloy, *, count: int = 4, **changes: Any) -> None:
    """Arrays as pretraining writes them: the first image is the reference, the last has no mask."""
    names = [alloy.references[0], *alloy.tests][:count]
    images = np.stack([alloy.images[name] for name in names])
    labels = np.stack([alloy.masks[name] for name in names])
    rng = np.random.default_rng(5)
    arrays: dict[str, Any] = {
        "references": np.array(1),
        "ids": np.array(names),
        "classes": np.array(alloy.classes),
        "images": images,
    }
    for scale, stride in enumerate((4, 2, 1)):
        per_class = 4 * 2**scale
        grid = labels[:, stride // 2 :: stride, stride // 2 :: stride]
        classes = np.repeat(np.arange(4), per_class)
        patches = np.full((len(names), len(classes), 2), -1, np.int32)
        hits = np.zeros((len(names), len(classes)))
        for image in range(len(names)):
            for place, wanted in enumerate(classes):
                loose = rng.random() < 0.12 and image > 0
                rows, columns = np.nonzero(np.ones_like(grid[image]) if loose else grid[image] == wanted)
                if len(rows):
                    pick = rng.integers(len(rows))
                    patches[image, place] = rows[pick], columns[pick]
                    hits[image, place] = grid[image][rows[pick], columns[pick]] == wanted
        taken = (patches >= 0).all(axis=2)
        colours = np.array([[70, 90, 160], [230, 150, 60], [90, 200, 120], [240, 230, 240]], np.float64)
        noisy = colours[grid] + rng.normal(0, 22, (*grid.shape, 3))
        if scale == 2:
            noisy = zoom(noisy, (1, 0.8, 0.8, 1), order=1)
        purity = (hits * taken).sum(axis=1) / np.maximum(1, taken.sum(axis=1))
        purity[-1] = np.nan
        arrays |= {
            f"patches{scale}": patches,
            f"grid{scale}": np.array(grid.shape[1:], np.int32),
            f"class{scale}": classes.astype(np.int32),
            f"purity{scale}": purity.astype(np.float32),
            f"pca{scale}": np.clip(noisy, 0, 255).astype(np.uint8),
        }
    labels[-1] = 255
    arrays["labels"] = labels
    arrays |= changes
    np.savez_compressed(path, **{key: value for key, value in arrays.items() if value is not None})


def _write(
    folder: Path,
    config: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    status: str,
    started: dict[int, float],
    **extra: Any,
) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    attempt = {"host": "node7", "pid": 1, "slurm_job": "", "commit": "0123abcd" * 5}
    record = {
        "kind": config["kind"],
        "name": config["name"],
        "status": status,
        "created": _iso(started[0]),
        "device": "CPU, 2 threads",
        "attempts": [
            {
                **attempt,
                "started": _iso(when),
                "first_step": step,
                "command": f"pscl-hpc {config['kind']} --config {config['kind']}.yaml",
                "versions": {"python": "3.11.2", "torch": "2.13.0"},
            }
            for step, when in started.items()
        ],
        "error": "",
    }
    if status == "done":
        record["finished"] = _iso(float(rows[-1]["time"]) + 5)
    (folder / "run.json").write_text(json.dumps(record | extra), encoding="utf-8")
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")


def _write_evaluation(folder: Path, alloy: Alloy, config: dict[str, Any], amount: float) -> None:
    classes = ClassList(alloy.classes)
    total = ConfusionMatrix(classes)
    per_image = []
    for seed, name in enumerate(alloy.tests):
        labels = degrade(alloy.masks[name], amount * (0.6 + 0.2 * seed), seed)
        path = folder / "predictions" / "test" / f"{picture_name(name)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels).save(path)
        single = ConfusionMatrix(classes)
        single.update(labels, alloy.masks[name])
        total.merge(single)
        found = single.scores()
        per_image.append({"id": name, **found.to_json()})
    scores = total.scores().to_json()
    content = {
        "split": "test",
        **scores,
        "collection": COLLECTION,
        "classes": list(alloy.classes),
        "background": 0,
        "ignore_classes": [],
        "references": config["references"],
        "pretrained": config["pretrained"],
        "archive": Archive(alloy.archive).fingerprint,
        "tta": "none",
        "adapt": 0.0,
        "splits": {"test": {**scores, "per_image": per_image}},
    }
    (folder / "evaluation.json").write_text(json.dumps(content), encoding="utf-8")


def _iso(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
