"""A small archive, study trees, and run folders made without training."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from pscl_hpc.archive import Archive, Collection, ShardWriter
from pscl_hpc.config import RunConfig
from pscl_hpc.models import TRUNK_FILE
from pscl_hpc.results.study import StudyResults
from pscl_hpc.runs import RunFolder
from pscl_hpc.segmentation import EVALUATION_FILE, ClassList
from pscl_hpc.segmentation.config import FinetuneConfig
from pscl_hpc.segmentation.metrics import ConfusionMatrix
from pscl_hpc.study.config import StudyConfig, load_study
from pscl_hpc.study.plan import Job, Plan, make_plan
from pscl_hpc.study.run import run_study
from pscl_hpc.study.schedule import Outcome
from tests.helpers import CLASSES, micrograph

SIZE = (48, 40)
TRAIN = 5
NONE = {"name": "none", "pretrain": "none"}
AMOUNTS = {"scratch": 0.4, "simclr": 0.3, "pscl-simclr": 0.15}


def write_archive(path: Path, *, twin: str = "") -> Path:
    """An archive of three collections.

    ``alloy``: five annotated training images, one to validate, two to test (another as test_ood); ``other``: two
    images without annotation and split; ``bare``: annotated, but without recommended references. ``twin``, an image of
    ``alloy`` or ``other``, has the pixels of the test image ``alloy/x0``.
    """
    collections = [
        Collection("alloy", CLASSES, 0, (), ("alloy/t0", "alloy/t1", "alloy/t2")),
        Collection("bare", CLASSES, 0),
        Collection("other"),
    ]
    splits = {
        **{f"t{i}": "train" for i in range(TRAIN)},
        "v0": "val",
        "x0": "test",
        "x1": "test",
        "o0": "test_ood",
    }
    with ShardWriter(path, collections) as writer:
        for seed, (stem, split) in enumerate(splits.items()):
            number = list(splits).index("x0") if twin == f"alloy/{stem}" else seed
            image, mask = micrograph(number, SIZE)
            writer.add(image, id=f"alloy/{stem}", dataset="alloy", mask=mask, split=split)
        for seed in range(6):
            image, mask = micrograph(seed + 40, SIZE)
            split = ("train", "train", "train", "train", "val", "test")[seed]
            # One foreground class each, as in sets of single defects.
            mask[mask == 1 + seed % 2] = 0
            writer.add(image, id=f"bare/{seed}", dataset="bare", mask=mask, split=split)
        for seed in range(2):
            number = list(splits).index("x0") if twin == f"other/{seed}" else 90 + seed
            writer.add(micrograph(number, SIZE)[0], id=f"other/{seed}", dataset="other")
    return path


def study_tree(archive: Path | str, run: Path, /, **changes: Any) -> dict[str, Any]:
    """A study of the small archive. ``changes`` replace top-level keys."""
    return {
        "name": "small",
        "run": str(run),
        "archive": str(archive),
        "datasets": [{"name": "alloy"}],
        "pretrain": {
            "data": {"splits": ["train", ""], "datasets": ["alloy", "other"]},
            "model": {"widths": [4, 8, 8]},
            "views": {"size": [32, 32]},
            "batch_size": 3,
            "schedule": {"steps": 4},
            "checkpoint": {"every_steps": 2},
        },
        "finetune": {
            "model": {"widths": [4, 8, 8]},
            "crop": [32, 32],
            "batch_size": 2,
            "schedule": {"steps": 4},
        },
        "methods": [
            {"name": "none", "pretrain": "none"},
            {"name": "simclr", "pretrain": {"method": {"name": "simclr"}}},
            {"name": "pscl", "pretrain": {"method": {"name": "pscl-simclr", "templates_per_class": 2}}},
        ],
        **changes,
    }


def small_study(archive: Path | str, run: Path, /, **changes: Any) -> StudyConfig:
    """The same as a file beside its folder, loaded."""
    return load_study(study_file(archive, run, **changes))


def study_file(archive: Path | str, run: Path, /, **changes: Any) -> Path:
    """The same as a file beside its folder."""
    run.parent.mkdir(parents=True, exist_ok=True)
    file = run.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(study_tree(archive, run, **changes)), encoding="utf-8")
    return file


def plan_of(archive: Path, folder: Path, /, **changes: Any) -> Plan:
    """The plan of the small study with ``changes``, in the folder ``study`` of ``folder``."""
    return make_plan(small_study(archive, folder / "study", **changes), str(archive))


class Fabricator:
    """An executor whose jobs end at once with plausible products.

    Args:
        failing: Words; a job whose label has one of them fails.
        amounts: Share of wrong pixels by the name of the pretraining method, ``scratch`` for none.
    """

    def __init__(self, failing: tuple[str, ...] = (), amounts: dict[str, float] | None = None) -> None:
        self.failing = failing
        self.amounts = amounts or {}
        self.started: list[str] = []
        self.stopped = False
        self._new: dict[str, Outcome] = {}

    def start(self, job: Job) -> None:
        self.started.append(job.label)
        word = next((word for word in self.failing if word in job.label), None)
        if word is not None:
            self._new[job.key] = Outcome("failed", f"it was about {word}")
            return
        fabricate(job.config, self.amounts)
        self._new[job.key] = Outcome("done")

    def poll(self) -> dict[str, Outcome]:
        new, self._new = self._new, {}
        return new

    def stop(self) -> None:
        self.stopped = True


def run(study: StudyConfig, executor: Fabricator) -> StudyResults:
    """The study's results when ``executor`` has done what was missing."""
    return run_study(study, executor, jobs=2, progress=False)[1]


def fabricate(config: RunConfig, amounts: dict[str, float]) -> None:
    """The folder of a finished run. Scores come from real masks with some pixels made wrong."""
    folder = RunFolder.start(config, torch.device("cpu"))
    with folder:
        if not isinstance(config, FinetuneConfig):
            (folder.path / TRUNK_FILE).write_bytes(b"")
            if config.method.name.startswith("pscl"):
                log = folder.metrics_log()
                for step, purity in enumerate((0.25, 0.1, 0.1, 0.75), 1):
                    log.write(step, {"scale0/purity": purity, "scale1/purity": math.nan})
                log.close()
            return
        folder.update(best={"step": 3, "mean_dice": 0.5})
        method = "scratch" if not config.pretrained else Path(config.pretrained).name.partition("--")[0]
        random = np.random.default_rng(zlib.crc32(repr((config.references, config.seed)).encode()))
        amount = amounts.get(method, 0.2) + 0.1 * random.random()
        classes = ClassList(CLASSES)
        splits = {}
        for split, seeds in (("test", (6, 7)), ("test_ood", (8,))):
            matrix = ConfusionMatrix(classes)
            per_image = []
            for seed in seeds:
                truth = micrograph(seed, SIZE)[1]
                wrong = random.random(truth.shape) < amount
                predicted = np.where(wrong, (truth + 1) % 3, truth).astype(np.uint8)
                single = ConfusionMatrix(classes)
                single.update(predicted, truth)
                matrix.merge(single)
                per_image.append({"id": f"alloy/{seed}", "mean_dice": 0.5, "dice": {}, "pixel_accuracy": 0.5})
                if method != "simclr":  # as evaluated by an earlier version
                    per_image[-1]["confusion"] = single.counts.tolist()
            splits[split] = {**matrix.scores().to_json(), "per_image": per_image}
        content = {
            "split": "test",
            "collection": config.references[0].partition("/")[0],
            "classes": list(CLASSES),
            "background": 0,
            "ignore_classes": [],
            "references": list(config.references),
            "pretrained": config.pretrained,
            "archive": folder.record.get("archive") or Archive(config.data.archive).fingerprint,
            "tta": "none",
            "adapt": 0.0,
            "splits": splits,
        }
        (folder.path / EVALUATION_FILE).write_text(json.dumps(content), encoding="utf-8")
