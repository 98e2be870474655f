"""The ONNX file answers as the run does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pscl_hpc.archive import Archive
from pscl_hpc.cli.main import main
from pscl_hpc.errors import JobError
from pscl_hpc.runs import RunFolder
from pscl_hpc.segmentation import onnx_export
from pscl_hpc.segmentation.onnx_export import export_onnx
from pscl_hpc.segmentation.trained import open_run

from .helpers import CLASSES, SCRATCH

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def exported(trained: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(trained.path, tmp_path_factory.mktemp("onnx") / "model.onnx").path


def test_classes_of_an_archive_image_are_those_of_predict(
    trained: RunFolder, archive_file: Path, exported: Path
) -> None:
    archive = Archive(archive_file)
    index = archive.find("alloy/test0").index
    _, _, predictor = open_run(trained.path)
    labels = predictor.archive_image(archive, index)
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    image = archive.read_unit(index, channels=predictor.channels)[None]
    classes, probabilities = session.run(["classes", "probabilities"], {"image": image})
    assert (classes[0] == labels).mean() > 0.999
    assert classes.dtype == np.uint8
    assert probabilities.shape == (1, len(CLASSES), *labels.shape)
    assert not probabilities[:, SCRATCH].any()
    assert np.abs(probabilities.sum(axis=1) - 1).max() < 1e-5
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == list(CLASSES)


def test_a_model_with_other_answers_is_not_written(
    trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: Path
) -> None:
    class Wrong:
        def SerializeToString(self) -> bytes:
            return exported.read_bytes()

    def other(net: onnx_export.ExportNet, channels: int, classes: object) -> Wrong:
        net.net.classifier.bias.data += 1.0 - net.net.classifier.bias.data.roll(1)
        return Wrong()

    monkeypatch.setattr(onnx_export, "_convert", other)
    with pytest.raises(JobError, match="differs"):
        export_onnx(trained.path, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_wrong_input(trained: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(trained.path)]) == 2
    assert "--onnx" in capsys.readouterr().err
    assert main(["export", str(trained.path), "--onnx", "--out", str(tmp_path / "no/model.onnx")]) == 2
    assert main(["export", str(tmp_path), "--onnx"]) == 2
