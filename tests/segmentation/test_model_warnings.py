"""What predictions say about classes, scales and intensity ranges of the training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from pscl_hpc.archive import Collection, ShardWriter
from pscl_hpc.archive.options import IngestOptions, options_to_tree
from pscl_hpc.runs import RunFolder
from pscl_hpc.segmentation import PredictReport, finetune, predict
from pscl_hpc.segmentation.pictures import read_labels

from .helpers import ALLOY, micrograph, settings


def labels_of(report: PredictReport) -> np.ndarray:
    (written,) = report.written
    return read_labels(Path(written.labels))


def grey16(seed: int) -> np.ndarray:
    return micrograph(seed, 96, 160)[0].astype(np.uint16) * 40 + 500


def save(path: Path, image: np.ndarray) -> Path:
    if path.suffix == ".tif":
        tifffile.imwrite(path, image)
    else:
        Image.fromarray(image).save(path)
    return path


def test_classes_never_seen_and_other_scales_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By fine-tuning before the first step, and by every prediction."""
    image, mask = micrograph(3)
    for name, size in (("near", 0.025), ("far", 0.05)):
        tifffile.imwrite(
            tmp_path / f"{name}.tif",
            image,
            imagej=True,
            resolution=(1 / size, 1 / size),
            metadata={"unit": "um"},
        )
    save(tmp_path / "unknown.png", image)
    with ShardWriter(tmp_path / "a.h5", [ALLOY]) as writer:
        shown = np.where(mask == 2, 0, mask)
        writer.add(image, mask=shown, id="alloy/a", dataset="alloy", split="train", um_per_pixel=0.02)
    config = settings(
        tmp_path / "a.h5",
        tmp_path / "run",
        references=["alloy/a"],
        validation_split="",
        schedule={"steps": 2},
    )
    run = finetune(config)
    assert "alloy/a shows no pixel of void" in capsys.readouterr().err
    files = [tmp_path / name for name in ("near.tif", "far.tif", "unknown.png")]
    report = predict(run.path, files, out=tmp_path / "out", percentiles=(0, 100), luma=False, crop_bottom=0)
    unseen, scale = report.warnings
    assert "void" in unseen
    assert "far.tif" in scale
    assert "0.05 um per pixel" in scale
    assert "0.02" in scale
    (written, *_) = report.written
    assert not (read_labels(Path(written.labels)) == 2).any(), (
        "void is never predicted, after two steps already"
    )


def test_another_magnification_is_said_where_the_scale_is_not_known(tmp_path: Path) -> None:
    image, mask = micrograph(3)
    with ShardWriter(tmp_path / "a.h5", [ALLOY]) as writer:
        for name, magnification in (("a", 5000.0), ("near", 6000.0), ("far", 500.0), ("none", None)):
            writer.add(
                image, mask=mask, id=f"alloy/{name}", dataset="alloy", split="train", magnification=magnification
            )  # fmt: skip
    run = finetune(
        settings(tmp_path / "a.h5", tmp_path / "run", references=["alloy/a"], validation_split="",
                 schedule={"steps": 1})
    )  # fmt: skip
    ids = [f"alloy/{name}" for name in ("near", "far", "none")]
    (warning,) = predict(run.path, ids, archive=tmp_path / "a.h5", out=tmp_path / "out").warnings
    assert warning.startswith("alloy/far: a magnification of 500")


def test_a_range_of_the_collection_applies_to_files(trained: RunFolder, tmp_path: Path) -> None:
    options = IngestOptions(common_range=True)
    run = tmp_path / "run"
    shutil.copytree(trained.path, run, ignore=shutil.ignore_patterns("checkpoints", "predictions"))
    record = json.loads((run / "run.json").read_text())
    record["ingest_options"] = {"annotated": [options_to_tree(options)], "unlabelled": []}
    record["intensity_ranges"] = {"uint16": [100.0, 60000.0]}
    (run / "run.json").write_text(json.dumps(record))
    file = save(tmp_path / "a.tif", grey16(70))
    by_run = labels_of(predict(run, [file], out=tmp_path / "run-range"))
    with ShardWriter(tmp_path / "a.h5", [Collection("x")]) as writer:
        writer.add(grey16(70), id="x/a", dataset="x", intensity=(100.0, 60000.0))
    by_id = labels_of(predict(run, ["x/a"], archive=tmp_path / "a.h5", out=tmp_path / "ids"))
    np.testing.assert_array_equal(by_run, by_id)
    own = labels_of(predict(run, [file], out=tmp_path / "own", common_range=False))
    assert (own != by_run).any()
