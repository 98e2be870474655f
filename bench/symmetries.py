"""What averaging over quarter turns and reflections does to the Dice of trained networks.

    python -m bench.symmetries runs/studies/longer-cpu [MORE...] --archive alloys.h5 [--methods none pscl-clustered]

Each fine-tuning of finished studies is scored twice on the validation images and on every test split of its data set:
as `pscl-hpc evaluate` does, and with the class probabilities averaged over the eight symmetries of the square. Nothing
is written into the studies.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bench.record import record
from pscl_hpc.archive import Archive, ImageRecord
from pscl_hpc.config import FinetuneConfig
from pscl_hpc.report.study_results import read_results
from pscl_hpc.segmentation.evaluate import open_run
from pscl_hpc.segmentation.inference import Predictor
from pscl_hpc.segmentation.metrics import ConfusionMatrix


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("studies", type=Path, nargs="+", help="folders of finished studies")
    parser.add_argument("--archive", type=Path, required=True)
    parser.add_argument("--methods", nargs="*", help="entries to score; all when absent")
    parser.add_argument("--name", default="cpu-symmetries-longer")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with Archive(arguments.archive) as archive:
        for study in arguments.studies:
            results = read_results(study)
            if results.archive != archive.fingerprint:
                parser.error(f"{study}: was made from another archive than {arguments.archive}")
            for folder in dict.fromkeys(row.folder for row in results.rows):
                row = next(row for row in results.rows if row.folder == folder)
                if arguments.methods and row.method not in arguments.methods:
                    continue
                about: dict[str, Any] = {
                    "study": results.study,
                    "method": row.method,
                    "dataset": row.dataset,
                    "references": list(row.references),
                    "seed": row.seed,
                    "key": row.key,
                    "commit": row.commit,
                }
                for scores in score(study / folder, archive):
                    rows.append(about | scores)
                    print(rows[-1], flush=True)
    methods = f" --methods {' '.join(arguments.methods)}" if arguments.methods else ""
    studies = " ".join(dict.fromkeys(str(row["study"]) for row in rows))
    command = f"python -m bench.symmetries {studies} --archive ARCHIVE{methods}"
    print(record(arguments.name, {"rows": rows}, command=command))


def score(run: Path, archive: Archive) -> list[dict[str, Any]]:
    """Mean Dice of one run on each split with annotated images, as it is and averaged over symmetries."""
    _, config, plain = open_run(run)
    averaged = Predictor(
        plain.net, plain.classes, plain.device, runtime=plain.runtime, tiling=plain.tiling, tta=True
    )
    dataset = config.references[0].partition("/")[0]
    return [
        {
            "split": split,
            "validates": split == config.validation_split,
            "images": len(records),
            "plain": _dice(plain, archive, records),
            "averaged": _dice(averaged, archive, records),
        }
        for split, records in _splits(archive, dataset, config).items()
    ]


def _splits(archive: Archive, dataset: str, config: FinetuneConfig) -> dict[str, list[ImageRecord]]:
    splits: dict[str, list[ImageRecord]] = {}
    for image in archive.select(datasets=[dataset], has_mask=True):
        if image.split == config.validation_split or image.split.startswith("test"):
            splits.setdefault(image.split, []).append(image)
    return splits


def _dice(predictor: Predictor, archive: Archive, records: list[ImageRecord]) -> float | None:
    total = ConfusionMatrix(predictor.classes)
    for image in records:
        total.update(predictor.archive_image(archive, image.index), archive.read_mask(image.index))
    return total.scores().mean_dice


if __name__ == "__main__":
    main()
