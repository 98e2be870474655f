"""Resizing of images for the network: the rule, the resampling, training and prediction at the same size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pscl_hpc.archive import Archive, Collection, ShardWriter
from pscl_hpc.classifiers import load_classifier
from pscl_hpc.config import resolve_config
from pscl_hpc.models import load_segmentation
from pscl_hpc.models.unet import UNetConfig
from pscl_hpc.segmentation import evaluate, finetune, train_classifier
from pscl_hpc.segmentation.classifier_config import ClassifierConfig
from pscl_hpc.segmentation.inference import Predictor, Tiling
from pscl_hpc.segmentation.onnx_export import export_onnx
from pscl_hpc.segmentation.placement import Placement, cut_window
from pscl_hpc.segmentation.trained import open_run
from pscl_hpc.working_size import mean_intercepts, resized, working_scale

from .helpers import THREE, reader, settings
from .test_inference import Pointwise


def stripes(height: int, width: int, period: int) -> np.ndarray:
    """Columns of class 0 and 1 in turn, each ``period`` wide."""
    return np.tile((np.arange(width) // period % 2).astype(np.uint8), (height, 1))


def test_mean_intercepts_of_known_patterns() -> None:
    found = mean_intercepts(np.kron(np.indices((20, 20)).sum(axis=0) % 2, np.ones((6, 6))).astype(np.uint8))
    # Squares of 6 pixels; those at the edge of the image have fewer ends.
    assert found[0] == pytest.approx(6, rel=0.1)
    assert found[1] == pytest.approx(6, rel=0.1)
    # Stripes have runs as long as the image in the other direction, of which none ends.
    assert mean_intercepts(stripes(400, 400, 10))[0] == pytest.approx(20, rel=0.1)
    assert mean_intercepts(np.zeros((9, 9), np.uint8)) == {}


def test_pixels_that_are_not_annotated_end_no_run() -> None:
    mask = np.full((40, 40), 255, np.uint8)
    mask[4:20, 4:20] = 0
    mask[22:30, 4:20] = 1
    assert mean_intercepts(mask) == {}
    assert working_scale("auto", [mask]) == 1


@pytest.mark.parametrize(
    ("mask", "scale"),
    [
        (stripes(700, 768, 40), 1.0),
        (stripes(1536, 1536, 80), 0.5),
        # The finest class has a mean intercept of 2 * 5 pixels.
        (stripes(3072, 3072, 5), 0.4),
        (stripes(3072, 3072, 1), 1.0),
        (np.zeros((3072, 30), np.uint8), 0.25),
        (stripes(64, 64, 20), 1.0),
    ],
)
def test_large_images_are_reduced_as_far_as_the_finest_class_allows(mask: np.ndarray, scale: float) -> None:
    assert working_scale("auto", [mask]) == pytest.approx(scale, rel=0.01)
    assert working_scale(0.7, [mask]) == 0.7


@pytest.mark.parametrize("scale", [0.5, 0.8, 1.25])
def test_prediction_resizes_as_training_does(tmp_path: Path, scale: float) -> None:
    """A window of the whole image, as it is trained on, is the image that the network predicts."""
    image = np.random.default_rng(0).integers(0, 255, (80, 80)).astype(np.uint8)
    with ShardWriter(tmp_path / "a.h5", [Collection("a", ("x", "y"))]) as writer:
        writer.add(image, mask=(image > 9).astype(np.uint8), id="a/0", dataset="a", split="train")
    with Archive(tmp_path / "a.h5") as archive:
        side = round(80 * scale)
        placement = Placement(False, 1e-12, scale)
        window, _ = cut_window(
            archive, archive.find("a/0"), placement, (side, side), UNetConfig(), np.random.default_rng(0)
        )
        whole = torch.from_numpy(archive.read_unit(0))[None]
    inner = slice(4, -4)
    difference = (resized(whole, scale, 1)[0, 0] - torch.from_numpy(window)[0])[inner, inner]
    assert float(difference.abs().max()) < 0.02


def test_a_flat_image_stays_flat_and_small_ones_keep_the_smallest_side() -> None:
    flat = torch.full((1, 2, 9, 40), 0.3)
    found = resized(flat, 0.25, 8)
    assert found.shape == (1, 2, 8, 10)
    assert torch.allclose(found, torch.full_like(found, 0.3))
    assert resized(flat, 1.0, 8) is flat


@pytest.mark.parametrize("tiling", [Tiling(), Tiling(tile=24, block=64)])
def test_the_network_sees_the_resized_image_and_the_answer_has_its_size(tiling: Tiling) -> None:
    """Broad stripes: the labels of the reduced image are those of the image, except next to the borders."""
    grey = np.array([0.1, 0.5, 0.9], np.float32)[np.arange(150) // 15 % 3]
    image = np.tile(grey, (1, 97, 1))
    net = Pointwise()
    predict = Predictor(net, THREE, torch.device("cpu"), tiling=tiling, resize=0.4)  # type: ignore[arg-type]
    sure = np.zeros((97, 150), np.uint8)
    labels = predict(reader(image), 97, 150, confidence=sure)
    assert labels.shape == (97, 150)
    assert max(max(size) for size in net.sizes) <= min(tiling.tile, 60)
    centre = np.arange(150) % 15 == 7
    assert np.array_equal(labels[:, centre], np.tile(np.arange(150)[centre] // 15 % 3, (97, 1)))
    assert sure[:, centre].min() > 128


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images of broad bright and dark stripes, 1,000 pixels wide."""
    path = tmp_path_factory.mktemp("large") / "a.h5"
    rng = np.random.default_rng(0)
    with ShardWriter(path, [Collection("alloy", ("dark", "bright"))]) as writer:
        for name, split in (("0", "train"), ("1", "test")):
            mask = stripes(96, 1000, 40)
            image = np.clip(60 + 120 * mask + rng.normal(0, 20, mask.shape), 0, 255).astype(np.uint8)
            writer.add(image, mask=mask, id=f"alloy/{name}", dataset="alloy", split=split)
    return path


@pytest.mark.parametrize(("rule", "scale"), [("auto", 0.768), (0.5, 0.5)])
def test_a_run_with_large_images(
    large: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], rule: float | str, scale: float
) -> None:
    config = settings(
        large,
        run=str(tmp_path / "run"),
        references=["alloy/0"],
        resize=rule,
        crop=[32, 32],
        schedule={"steps": 30},
        validation_split="",
    )
    run = finetune(config)
    assert ("reduced to 77%" in capsys.readouterr().err) == (rule == "auto")
    assert load_segmentation(run.path)[1].resize == scale
    scores = evaluate(run.path)
    assert scores["mean_dice"] > 0.9
    _, _, predictor = open_run(run.path)
    assert isinstance(predictor, Predictor)
    assert predictor.resize == scale


@pytest.mark.parametrize(("rule", "scale"), [("auto", 0.768), (1.0, 1.0)])
def test_a_classifier_of_large_images(
    large: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], rule: float | str, scale: float
) -> None:
    tree = {
        "kind": "classifier", "run": str(tmp_path / "run"), "data": {"archive": str(large)}, "references": ["alloy/0"],
        "features": {"name": "filters", "sigmas": [2.0], "medians": []}, "pixels": {"per_class": 300},
        "head": {"name": "mlp", "steps": 100}, "resize": rule, "runtime": {"device": "cpu", "threads": 1},
    }  # fmt: skip
    config = resolve_config(tree, source="test")
    assert isinstance(config, ClassifierConfig)
    run = train_classifier(config)
    assert ("reduced to 77%" in capsys.readouterr().err) == (rule == "auto")
    assert load_classifier(run.path).card.resize == scale
    for tta in ("none", "rotations"):
        assert evaluate(run.path, tta=tta)["mean_dice"] > 0.95


def test_the_onnx_file_resizes_too(large: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    config = settings(
        large, run=str(tmp_path / "run"), references=["alloy/0"], resize=0.5, crop=[32, 32],
        schedule={"steps": 3}, validation_split="",
    )  # fmt: skip
    exported = export_onnx(finetune(config).path)
    assert exported.largest_difference < 1e-3
    with Archive(large) as archive:
        labels = open_run(tmp_path / "run")[2].archive_image(archive, 1)
        image = archive.read_unit(1, channels=1)[None]
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    classes, _ = session.run(["classes", "probabilities"], {"image": image})
    # The whole image in one call, against tiles.
    assert (classes[0] == labels).mean() > 0.98
