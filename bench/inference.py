"""Effect of test-time augmentation and adaptation on the Dice of trained networks.

    python -m bench.inference runs/studies/one-image --archive alloys.h5 [--methods imagenet-self-training] [--jobs 2]

Each fine-tuning of a finished study is scored on the validation images and on every test split of its dataset: by one
pass, with test-time augmentation (`--tta`), adapted to each image (`--adapt`), and without the class weights of the
training (`--unweighted`). The study is not changed.
"""

from __future__ import annotations

import argparse
import copy
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import torch

from bench.record import record
from pscl_hpc.archive import Archive, ImageRecord
from pscl_hpc.results.study import read_results
from pscl_hpc.segmentation.config import FinetuneConfig, InferenceConfig
from pscl_hpc.segmentation.inference import Predictor
from pscl_hpc.segmentation.metrics import ConfusionMatrix
from pscl_hpc.segmentation.trained import open_run

WAYS: dict[str, InferenceConfig] = {
    "one pass": InferenceConfig(),
    "rotations": InferenceConfig(tta="rotations"),
    "scales": InferenceConfig(tta="scales"),
    "scales, adapt 0.1": InferenceConfig(tta="scales", adapt=0.1),
    "scales, unweighted": InferenceConfig(tta="scales", unweighted=True),
}


def main() -> None:
    ways = {name: way.model_dump() for name, way in WAYS.items()}
    record_networks("inference", __doc__, score, ways=ways)


def record_networks(
    command: str, text: str | None, score: Callable[[Path, Path], list[dict[str, Any]]], **more: Any
) -> None:
    """Score the networks of the study that the command line names, and record the rows.

    Args:
        command: Name of the module, also of the result.
        text: Help text.
        score: Rows of a run folder, given that and the archive; called in processes of its own.
        more: Also recorded.
    """
    arguments = _arguments(text).parse_args()
    rows, study = _score_study(arguments, score)
    methods = f" --methods {' '.join(arguments.methods)}" if arguments.methods else ""
    shown = f"python -m bench.{command} runs/studies/{study['study']} --archive ARCHIVE{methods}"
    print(record(arguments.name or f"cpu-{command}", study | more | {"rows": rows}, command=shown))


def _arguments(text: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of a finished study")
    parser.add_argument("--archive", type=Path, required=True)
    parser.add_argument("--methods", nargs="*", help="entries to score; all by default")
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--name", help="name of the file in bench/results/")
    return parser


def _score_study(
    arguments: argparse.Namespace, score: Callable[[Path, Path], list[dict[str, Any]]]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Call ``score`` with each run folder of a study and the archive; its rows with what they are of, and the study."""
    results = read_results(arguments.study)
    with Archive(arguments.archive) as archive:
        if results.archive != archive.fingerprint:
            raise SystemExit(f"{arguments.study}: was made from another archive than {arguments.archive}")
    runs = {
        row.folder: {
            "method": row.method,
            "dataset": row.dataset,
            "references": list(row.references),
            "seed": row.seed,
            "key": row.key,
            "commit": row.commit,
        }
        for row in results.rows
        if not arguments.methods or row.method in arguments.methods
    }
    found: dict[str, list[dict[str, Any]]] = {}
    with ProcessPoolExecutor(
        arguments.jobs, mp_context=get_context("spawn"), initializer=_end_with_parent
    ) as pool:
        futures = {pool.submit(score, arguments.study / folder, arguments.archive): folder for folder in runs}
        for future in as_completed(futures):
            folder = futures[future]
            found[folder] = [runs[folder] | scores for scores in future.result()]
            print(*found[folder], sep="\n", flush=True)
    rows = [row for folder in runs for row in found[folder]]
    return rows, {"study": results.study, "archive": results.archive}


def _end_with_parent() -> None:
    """In a process of the pool: end when the command is killed, which would leave it waiting for work."""

    def wait() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def score(run: Path, archive_path: Path) -> list[dict[str, Any]]:
    """Mean Dice of one run on each split with annotated images, for each way of inference."""
    config, plain = open_network(run)
    with Archive(archive_path) as archive:
        return [
            {
                "split": split,
                "validates": split.startswith("val"),
                "images": len(records),
                "dice": {
                    name: _dice(with_inference(plain, way), archive, records) for name, way in WAYS.items()
                },
            }
            for split, records in scored_images(archive, config).items()
        ]


def open_network(run: Path) -> tuple[FinetuneConfig, Predictor]:
    """The network of a fine-tuning, for a process of one thread."""
    torch.set_num_threads(1)
    _, config, trained = open_run(run)
    assert isinstance(config, FinetuneConfig)
    assert isinstance(trained, Predictor)
    return config, trained


def with_inference(trained: Predictor, way: InferenceConfig) -> Predictor:
    """The same network with another way of inference."""
    other = copy.copy(trained)
    other.inference = way
    return other


def scored_images(archive: Archive, config: FinetuneConfig) -> dict[str, list[ImageRecord]]:
    """Annotated validation and test images of a run's dataset by split, without those that it was trained on."""
    dataset = config.references[0].partition("/")[0]
    splits: dict[str, list[ImageRecord]] = {}
    for image in archive.select(datasets=[dataset], has_mask=True):
        if image.split.startswith(("val", "test")) and image.id not in config.references:
            splits.setdefault(image.split, []).append(image)
    return splits


def _dice(predictor: Predictor, archive: Archive, records: list[ImageRecord]) -> float | None:
    total = ConfusionMatrix(predictor.classes)
    for image in records:
        total.update(predictor.archive_image(archive, image.index), archive.read_mask(image.index))
    return total.scores().mean_dice


if __name__ == "__main__":
    main()
