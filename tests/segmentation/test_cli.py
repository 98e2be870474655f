"""The commands finetune, evaluate and predict."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pscl_hpc.cli.main import main
from pscl_hpc.config import load_config
from pscl_hpc.errors import EXIT_DONE, EXIT_FAILED, EXIT_INPUT, EXIT_SKIPPED
from pscl_hpc.runs import RunFolder
from pscl_hpc.segmentation.config import FinetuneConfig

from .helpers import micrograph

CONFIGS = Path(__file__).parents[2] / "configs" / "finetune"
SMALL = (
    "references=[alloy/train0]",
    "model.widths=[4,8]",
    "crop=[32,32]",
    "batch_size=2",
    "schedule.steps=4",
    "validate_every=4",
    "runtime.device=cpu",
    "runtime.threads=1",
)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_are_valid(path: Path) -> None:
    assert isinstance(load_config(path, kind="finetune"), FinetuneConfig)


def test_from_finetune_to_predict(
    archive_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    command = [
        "finetune",
        "--config",
        str(CONFIGS / "unet.yaml"),
        f"data.archive={archive_file}",
        f"run={run}",
    ]
    assert main([*command, *SMALL]) == EXIT_DONE
    assert capsys.readouterr().out.splitlines()[-1] == str(run)
    assert main([*command, *SMALL, "--json"]) == EXIT_DONE
    assert json.loads(capsys.readouterr().out)["best"]["step"] == 4

    assert main(["evaluate", str(run)]) == EXIT_DONE
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("test: 2 images, mean Dice ")
    assert shown[-1] == str(run / "evaluation.json")
    assert main(["evaluate", str(run), "--split", "val", "--json"]) == EXIT_DONE
    assert json.loads(capsys.readouterr().out) == json.loads((run / "evaluation.json").read_text())
    assert main(["evaluate", str(run), "--tta", "rotations", "--json"]) == EXIT_DONE
    assert json.loads(capsys.readouterr().out)["tta"] == "rotations"
    assert main(["evaluate", str(run), "--adapt", "0.5", "--json"]) == EXIT_DONE
    assert json.loads(capsys.readouterr().out)["adapt"] == 0.5
    assert main(["evaluate", str(run), "--correct-shading", "--json"]) == EXIT_DONE
    assert json.loads(capsys.readouterr().out)["correct_shading"] is True
    assert main(["evaluate", str(run), "--unweighted", "--json"]) == EXIT_DONE
    assert json.loads(capsys.readouterr().out)["unweighted"] is True

    Image.fromarray(micrograph(40)[0]).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    assert main(["predict", str(run), str(tmp_path / "a.png")]) == EXIT_DONE
    assert capsys.readouterr().out.splitlines()[-1] == str(run / "predictions/files")
    labels = np.array(Image.open(run / "predictions/files/a.png"))
    assert labels.shape == (48, 56)
    out = str(tmp_path / "out")
    both = ["predict", str(run), str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--out", out, "--json"]
    assert main(both) == EXIT_SKIPPED
    captured = capsys.readouterr()
    assert json.loads(captured.out)["skipped"][0]["source"] == str(tmp_path / "b.png")
    assert str(tmp_path / "b.png") in captured.err


def test_wrong_input_ends_with_one_line_and_exit_code_2(
    archive_file: Path, trained: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = f"run={tmp_path / 'run'}"
    finetune = ["finetune", "--config", str(CONFIGS / "unet.yaml"), f"data.archive={archive_file}", run]
    cases = {
        "alloy/train0": [*finetune, "references=[alloy/trian0]"],
        "references": [*finetune, "refernces=[alloy/train0]"],
        "val0": [*finetune, "references=[alloy/val0]"],
        "--split": ["evaluate", str(trained.path), "--split", "nowhere"],
        "--adapt": ["evaluate", str(trained.path), "--adapt", "1.5"],
        "run folder": ["evaluate", str(tmp_path / "nowhere")],
        "missing.png": [
            "predict",
            str(trained.path),
            str(tmp_path / "missing.png"),
            "--out",
            str(tmp_path / "o"),
        ],
    }
    for word, arguments in cases.items():
        assert main(arguments) == EXIT_INPUT, arguments
        message = capsys.readouterr().err.strip()
        assert word in message
        assert message.startswith("error: ")
        assert "\n" not in message
        assert not (tmp_path / "run").exists()


def test_a_failed_training_names_the_step_and_ends_with_exit_code_3(
    archive_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["finetune", "--config", str(CONFIGS / "unet.yaml"), f"data.archive={archive_file}"]
    arguments = [*command, *SMALL, f"run={tmp_path / 'run'}", "schedule.warmup_steps=0", "optimiser.lr=1e30"]
    assert main(arguments) == EXIT_FAILED
    assert "step 2" in capsys.readouterr().err
