"""From a folder and one mask to numbers, in one call and as a job."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pscl_hpc.archive import Archive
from pscl_hpc.cli.main import main
from pscl_hpc.config.packaged import packaged_config
from pscl_hpc.errors import EXIT_INPUT, UserError
from pscl_hpc.metallography.measure import measure
from pscl_hpc.metallography.record import read_measurements
from pscl_hpc.runs import RunFolder
from pscl_hpc.workflow import Request, segment
from pscl_hpc.workflow.request import PAGE
from pscl_hpc.workflow.segment import prepare

from .material import SMALL, micrograph, request_of, words_of

ROOT = Path(__file__).resolve().parents[2]


def test_a_folder_and_a_mask_give_numbers_a_page_and_the_single_commands(folder: Path) -> None:
    said: list[str] = []
    names = ("matrix", "carbide")
    done = segment(request_of(folder, um_per_pixel=0.5, classes=names), folder / "out", say=said.append)
    record = read_measurements(folder / "out/measurements")
    assert [image.name for image in record.images] == ["sem/0", "sem/1", "sem/2"]
    assert [image.annotated for image in record.images] == [False, True, False]
    assert record.classes == names
    assert record.unit == "um"
    assert any("3 images" in text and "sem/1" in text for text in said)
    # The mask that was trained on tells nothing about the errors.
    again = measure(
        folder / "out/model", [folder / "sem"], masks=folder / "painted", out=folder / "again"
    ).record
    assert [image.annotated for image in again.images] == [False, True, False]
    assert again.find("carbide", "error of the fraction") is None
    assert any("trained on all images with a mask" in text for text in again.warnings)
    assert "Phases in 3 images" in done.page.read_text(encoding="utf-8")
    archive = Archive(folder / "out/archive.h5")
    assert np.array_equal(archive.read_mask(archive.find("sem/1").index), micrograph(1)[1])
    commands = [shlex.split(command) for command in record.commands]
    assert [words[:2] for words in commands] == [
        ["pscl-hpc", "archive"], ["pscl-hpc", "finetune"], ["pscl-hpc", "measure"], ["pscl-hpc", "report"]
    ]  # fmt: skip
    # Each finds what is finished, and the numbers stay.
    for words in commands:
        assert main(words[1:]) == 0
    assert read_measurements(folder / "out/measurements").results == record.results
    # The page of the folder is that of its measurements, not that of its run.
    assert main(["report", str(folder / "out")]) == 0
    assert "Phases in 3 images" in done.page.read_text(encoding="utf-8")
    assert main(["report", str(folder / "out"), str(folder / "out/model")]) == EXIT_INPUT
    assert "Phases in 3 images" in done.page.read_text(encoding="utf-8")


def test_a_time_takes_the_place_of_the_steps(folder: Path) -> None:
    others = tuple(text for text in SMALL if "schedule.steps" not in text)
    schedule = prepare(request_of(folder, minutes=0.5, overrides=others), folder / "out").config.schedule
    assert (schedule.minutes, schedule.steps) == (0.5, 0)


def test_another_configuration_of_the_training(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = folder / "own.yaml"
    own.write_text(
        "kind: finetune\nmodel: {name: unet, widths: [4, 8]}\ncrop: [32, 32]\nbatch_size: 3\nschedule: {steps: 5}\n"
    )
    wanted = request_of(folder, config=str(own), overrides=("seed=7",))
    config = prepare(wanted, folder / "out").config
    assert (config.batch_size, config.seed, config.schedule.steps) == (3, 7, 5)
    assert config.semi_supervised is None, "the default recipe has no part in it"
    with pytest.raises(UserError, match="absent"):
        prepare(request_of(folder, config=str(folder / "absent.yaml")), folder / "elsewhere")
    own.write_text("kind: pretrain\nmethod: {name: simclr}\n")
    with pytest.raises(UserError, match=r"own\.yaml"):
        prepare(wanted, folder / "elsewhere")
    words = [
        "--mask",
        wanted.masks[0],
        "--config",
        str(folder / "absent.yaml"),
        "--out",
        str(folder / "other"),
    ]
    assert main(["segment", wanted.folder, *words]) == EXIT_INPUT
    assert "absent.yaml" in capsys.readouterr().err


def test_the_validation_images_of_a_dataset_folder_correct_the_fractions(tmp_path: Path) -> None:
    for name in ("img", "gt"):
        (tmp_path / "alloy" / name).mkdir(parents=True)
    for number in range(4):
        image, mask = micrograph(number)
        Image.fromarray(image).save(tmp_path / f"alloy/img/{number}.png")
        Image.fromarray(mask).save(tmp_path / f"alloy/gt/{number}.png")
    splits = {
        "classes": ["matrix", "carbide"],
        "train": ["0.png"],
        "val": ["1.png"],
        "test": ["2.png", "3.png"],
    }
    (tmp_path / "alloy/splits.json").write_text(json.dumps(splits))
    request = Request(
        folder=str(tmp_path / "alloy"), masks=(str(tmp_path / "alloy/gt/0.png"),), overrides=SMALL
    )
    record = segment(request, tmp_path / "out").measured.record
    assert record.classes == ("matrix", "carbide")
    assert record.correction is not None
    assert record.correction.images == 1
    assert record.find("carbide", "fraction in the masks") is not None
    with pytest.raises(UserError, match="--classes"):
        segment(request.model_copy(update={"classes": ("a", "b")}), tmp_path / "other")


def test_the_results_may_be_in_the_folder_of_the_images(folder: Path) -> None:
    for _ in range(2):
        done = segment(request_of(folder), folder / "sem/out")
        assert [image.name for image in done.measured.record.images] == ["sem/0", "sem/1", "sem/2"]
        assert not done.measured.record.skipped


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"folder": "nowhere"}, "nowhere"),
        ({"masks": ("nowhere.png",)}, "nowhere.png"),
        ({"images": ("9.png",)}, "9.png"),
        ({"phases": ("carbid",), "classes": ("matrix", "carbide")}, "carbid"),
        ({"boundary": "edge"}, "edge"),
    ],
)
def test_wrong_input_is_found_before_the_training(
    folder: Path, changes: dict[str, object], named: str
) -> None:
    with pytest.raises(UserError, match=named):
        segment(request_of(folder, **changes), folder / "out")
    assert not (folder / "out/model").exists()
    # The corrected call may use the same folder.
    assert prepare(request_of(folder), folder / "out").inputs.references == ("sem/1",)


def test_a_job_does_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = words_of(folder)
    assert main([*arguments, "--time", "5", *SMALL]) == 2
    assert "--submit" in capsys.readouterr().err
    shutil.rmtree(folder / "out", ignore_errors=True)
    assert main([*arguments, "--submit", "--cluster", "local", *SMALL]) == 0
    end = time.monotonic() + 240
    while not (folder / "out" / PAGE).is_file():
        assert time.monotonic() < end, "".join(
            path.read_text() for path in (folder / "out/model/jobs").glob("*_log.out")
        )
        time.sleep(0.2)
    assert RunFolder.load(folder / "out/model").done
    assert len(read_measurements(folder / "out/measurements").images) == 3


def test_the_recipe_is_part_of_the_wheel(tmp_path: Path) -> None:
    """It is found in a checkout here; in a wheel it is inside the package."""
    assert packaged_config("finetune/default.yaml") == ROOT / "configs/finetune/default.yaml"
    with pytest.raises(UserError, match="is not in this installation"):
        packaged_config("finetune/nothing.yaml")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"][
        "wheel"
    ]
    installed = tmp_path / "installed"
    shutil.copytree(ROOT / "pscl_hpc", installed / "pscl_hpc")
    for source, target in settings["force-include"].items():
        shutil.copytree(ROOT / source, installed / target)
    ask = "from pscl_hpc.config.packaged import packaged_config as find; print(find('finetune/default.yaml'))"
    shown = subprocess.run(
        [sys.executable, "-c", ask],
        env={**os.environ, "PYTHONPATH": str(installed)},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    assert shown == str(installed / "pscl_hpc/configs/finetune/default.yaml")
