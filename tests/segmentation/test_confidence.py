"""Maps of confidence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pscl_hpc.models import SegmentationNet, build_trunk
from pscl_hpc.models.unet import UNetConfig
from pscl_hpc.runs import RunFolder
from pscl_hpc.segmentation import predict
from pscl_hpc.segmentation.inference import Predictor, Tiling
from pscl_hpc.segmentation.pictures import read_labels

from .helpers import THREE, micrograph, reader


def test_confidence_is_the_probability_of_the_predicted_class() -> None:
    torch.manual_seed(0)
    net = SegmentationNet(build_trunk(UNetConfig(widths=(4, 8))), 3)
    image = np.random.default_rng(0).random((1, 40, 52), dtype=np.float32)
    sure = np.zeros((40, 52), np.uint8)
    predictor = Predictor(net, THREE, torch.device("cpu"))
    labels = predictor(reader(image), 40, 52, confidence=sure)
    with torch.no_grad():
        expected = net.eval()(torch.from_numpy(image)[None]).softmax(1)[0].amax(0)
    assert np.abs(sure / 255 - expected.numpy()).max() <= 0.5 / 255 + 1e-6
    assert np.array_equal(labels, predictor(reader(image), 40, 52))


def test_confidence_of_an_image_in_tiles_covers_all_of_it() -> None:
    torch.manual_seed(0)
    net = SegmentationNet(build_trunk(UNetConfig(widths=(4, 8))), 3)
    image = np.random.default_rng(0).random((1, 90, 70), dtype=np.float32)
    sure = np.zeros((90, 70), np.uint8)
    tiling = Tiling(tile=32, block=48)
    Predictor(net, THREE, torch.device("cpu"), tiling=tiling)(reader(image), 90, 70, confidence=sure)
    assert sure.min() >= 85 - 1  # the largest of three probabilities is at least a third


def test_predict_writes_a_map_with_the_size_of_the_file(trained: RunFolder, tmp_path: Path) -> None:
    Image.fromarray(micrograph(3, 40, 44)[0]).save(tmp_path / "a.png")
    file = [tmp_path / "a.png"]
    (image,) = predict(trained.path, file, out=tmp_path / "out", crop_bottom=5, confidence=True).written
    sure = read_labels(Path(image.confidence))
    assert sure.shape == (40, 44)
    assert not sure[-5:].any()
    assert sure[:-5].min() > 0
    assert image.mean_confidence is not None
    assert abs(image.mean_confidence - sure[:-5].mean() / 255) < 1e-6
    (without,) = predict(trained.path, file, out=tmp_path / "plain", crop_bottom=5).written
    assert without.confidence == ""
    assert not list((tmp_path / "plain").glob("*.confidence.png"))
