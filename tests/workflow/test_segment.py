"""From a folder and one mask to numbers, in one call, in several, and as a job."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from pscl_hpc.archive import Archive
from pscl_hpc.cli.main import main
from pscl_hpc.config.packaged import packaged_config
from pscl_hpc.errors import EXIT_INPUT, UserError
from pscl_hpc.metallography.measure import measure
from pscl_hpc.metallography.record import read_measurements
from pscl_hpc.runs import RunFolder
from pscl_hpc.training import StopRequested
from pscl_hpc.workflow import Request, segment, suggest_annotation
from pscl_hpc.workflow.inputs import numbered_classes
from pscl_hpc.workflow.segment import PAGE, REQUEST_FILE, prepare, read_request

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "model.name=unet",
    "model.widths=[4,8]",
    "crop=[32,32]",
    "batch_size=2",
    "semi_supervised.batch_size=2",
    "schedule.steps=8",
    "schedule.warmup_steps=0",
    "checkpoint.every_steps=2",
    "runtime.threads=1",
    "runtime.device=cpu",
)


def micrograph(seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:48, :56]
    mask = ((y - random.uniform(10, 38)) ** 2 + (x - random.uniform(10, 46)) ** 2 < 90).astype(np.uint8)
    return (np.where(mask == 1, 190, 80) + random.normal(0, 12, mask.shape)).clip(0, 255).astype(
        np.uint8
    ), mask


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images in ``sem/`` and the mask of one in ``painted/``."""
    for name in ("sem", "painted"):
        (tmp_path / name).mkdir()
    for number in range(3):
        Image.fromarray(micrograph(number)[0]).save(tmp_path / f"sem/{number}.png")
    Image.fromarray(micrograph(1)[1]).save(tmp_path / "painted/1_mask.png")
    return tmp_path


def request_of(home: Path, **changes: object) -> Request:
    tree = {"folder": str(home / "sem"), "mask": str(home / "painted/1_mask.png"), "overrides": SMALL}
    return Request.model_validate({**tree, **changes})


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


def test_classes_without_names_are_numbered(folder: Path) -> None:
    said: list[str] = []
    inputs = prepare(request_of(folder), folder / "out", say=said.append).inputs
    assert inputs.classes == ("class 0", "class 1")
    assert any("--classes" in text for text in said)


def test_a_time_takes_the_place_of_the_steps(folder: Path) -> None:
    others = tuple(text for text in SMALL if "schedule.steps" not in text)
    schedule = prepare(request_of(folder, minutes=0.5, overrides=others), folder / "out").config.schedule
    assert (schedule.minutes, schedule.steps) == (0.5, 0)


def test_a_mask_beside_its_image(folder: Path) -> None:
    """The folder tells the mask by its name, and has no class names."""
    mask = folder / "sem/1_mask.png"
    shutil.copy(folder / "painted/1_mask.png", mask)
    found = prepare(request_of(folder, mask=str(mask)), folder / "out").inputs
    assert found.reference == "sem/1"
    assert found.classes == ("class 0", "class 1")
    assert len(Archive(found.archive)) == 3
    named = prepare(
        request_of(folder, mask=str(mask), classes=("matrix", "carbide")), folder / "named"
    ).inputs
    assert named.classes == ("matrix", "carbide")


def test_the_same_call_resumes_after_a_kill(folder: Path) -> None:
    command = [
        sys.executable, "-m", "pscl_hpc.cli", "segment", str(folder / "sem"), "--mask",
        str(folder / "painted/1_mask.png"), "--classes", "matrix,carbide", "--out", str(folder / "out"),
        *[text.replace("steps=8", "steps=100000") if "schedule.steps" in text else text for text in SMALL],
    ]  # fmt: skip
    process = subprocess.Popen(
        command, env=dict(os.environ), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    checkpoints = folder / "out/model/checkpoints"
    try:
        # The newest checkpoint may be incomplete when the process is killed; the one before it is not.
        while len(list(checkpoints.glob("step-*.sha256"))) < 2:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    # Shorter from here on: the rest of the configuration has to be the same.
    for name in (REQUEST_FILE, "model/config.yaml"):
        path = folder / "out" / name
        path.write_text(path.read_text().replace("100000", "100"))
    command = [text.replace("100000", "100") for text in command[3:]]
    assert main(command) == 0
    run = RunFolder.load(folder / "out/model")
    assert run.done
    first, second = (attempt["first_step"] for attempt in run.attempts)
    assert first == 0
    assert 0 < second <= 100
    assert (folder / "out" / PAGE).is_file()


def test_images_that_are_added_before_the_training_has_ended(folder: Path) -> None:
    """The training goes on with the archive it began with; all images are measured."""
    out, request = folder / "out", request_of(folder)
    config = prepare(request, out).config
    before = Archive(out / "archive.h5").fingerprint
    run = RunFolder.start(config, torch.device("cpu"))
    with contextlib.suppress(StopRequested), run:
        run.update(archive=before)
        run.stop("interrupted")
        raise StopRequested("interrupted", "")
    Image.fromarray(micrograph(7)[0]).save(folder / "sem/new.png")
    (folder / "sem/0.png").unlink()
    said: list[str] = []
    record = segment(request, out, say=said.append).measured.record
    assert any("1 more image" in text for text in said)
    assert [image.name for image in record.images] == ["sem/0", "sem/1", "sem/2", "sem/new"]
    assert RunFolder.load(out / "model").record["archive"] == before
    assert any("sem/0" in warning and "no longer" in warning for warning in record.warnings)
    # Another mask needs another training.
    Image.fromarray(1 - micrograph(1)[1]).save(folder / "painted/1_mask.png")
    with pytest.raises(UserError, match="--out"):
        segment(request, out)


def test_another_request_does_not_overwrite(folder: Path) -> None:
    out = folder / "out"
    segment(request_of(folder), out)
    with pytest.raises(UserError, match="percentiles"):
        segment(request_of(folder, percentiles=(1, 99)), out)
    labels = read_measurements(out / "measurements").images[0].files["labels"]
    before = (out / "measurements" / labels).stat().st_mtime_ns
    trained = (out / "model/model.safetensors").stat().st_mtime_ns
    Image.fromarray(micrograph(7)[0]).save(folder / "sem/new.png")
    segment(request_of(folder), out)
    assert len(read_measurements(out / "measurements").images) == 4
    assert (out / "model/model.safetensors").stat().st_mtime_ns == trained
    assert (out / "measurements" / labels).stat().st_mtime_ns == before
    # What is measured may change without another training.
    again = segment(request_of(folder, um_per_pixel=0.5, phases=("class 1",)), out).measured.record
    assert (again.unit, again.phases) == ("um", ("class 1",))
    assert read_request(out).um_per_pixel == 0.5
    assert (out / "model/model.safetensors").stat().st_mtime_ns == trained


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
    request = Request(folder=str(tmp_path / "alloy"), mask=str(tmp_path / "alloy/gt/0.png"), overrides=SMALL)
    record = segment(request, tmp_path / "out").measured.record
    assert record.classes == ("matrix", "carbide")
    assert record.correction is not None
    assert record.correction.images == 1
    assert record.find("carbide", "fraction in the masks") is not None
    with pytest.raises(UserError, match="--classes"):
        segment(request.model_copy(update={"classes": ("a", "b")}), tmp_path / "other")


def test_without_a_mask_and_with_one_afterwards(folder: Path) -> None:
    with pytest.raises(UserError, match="--mask"):
        segment(request_of(folder, mask=""), folder / "out")
    found = suggest_annotation(request_of(folder, mask=""), folder / "out")
    assert len(Archive(folder / "out/archive.h5")) == 3
    assert found.id in ("sem/0", "sem/1", "sem/2")
    assert found.reason.is_file()
    assert not any("--count" in warning for warning in found.warnings)
    with Image.open(found.template) as template, Image.open(found.image) as image:
        assert (template.mode, template.size, image.size) == ("P", (56, 48), (56, 48))
        assert np.array_equal(np.unique(np.asarray(template)), [255])
        painted = np.asarray(template).copy()
        painted[:, :20], painted[:, 20:30] = 0, 1
        changed = template.copy()
        changed.paste(Image.fromarray(painted))
    changed.save(found.template)
    again = suggest_annotation(request_of(folder, mask=""), folder / "out")
    with Image.open(again.template) as template:
        assert np.array_equal(np.asarray(template), painted)
    request = request_of(folder, mask=str(found.template), image=found.id, classes=("a", "b"))
    inputs = prepare(request, folder / "out").inputs
    assert inputs.reference == found.id
    archive = Archive(folder / "out/archive.h5")
    assert np.array_equal(archive.read_mask(archive.find(found.id).index), painted)
    assert prepare(request_of(folder), folder / "out").inputs.reference == "sem/1"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"folder": "nowhere"}, "nowhere"),
        ({"mask": "nowhere.png"}, "nowhere.png"),
        ({"image": "9.png"}, "9.png"),
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
    assert prepare(request_of(folder), folder / "out").inputs.reference == "sem/1"


def test_a_mask_of_no_image_and_a_mask_among_the_images(folder: Path) -> None:
    other = folder / "painted/9.png"
    shutil.copy(folder / "painted/1_mask.png", other)
    (folder / "sem/other").mkdir()
    Image.fromarray(micrograph(7)[0]).save(folder / "sem/other/1.png")
    with pytest.raises(UserError, match=r"--image and its folder"):
        prepare(request_of(folder, image="1.png"), folder / "two")
    found = prepare(request_of(folder, image="other/1.png"), folder / "two").inputs
    assert found.reference == "sem/other__1"
    shutil.rmtree(folder / "sem/other")
    with pytest.raises(UserError, match="--image"):
        segment(request_of(folder, mask=str(other)), folder / "a")
    record = segment(request_of(folder, mask=str(other), image="1.png"), folder / "b").measured.record
    assert record.references == ("sem/1",)
    inside = folder / "sem/painted.png"
    shutil.copy(other, inside)
    with pytest.raises(UserError, match="among the images"):
        segment(request_of(folder, mask=str(inside)), folder / "c")


def test_a_mask_of_shapes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = {"label": "carbide", "points": [[5, 5], [30, 5], [30, 30]], "shape_type": "polygon"}
    mask = folder / "painted/2.json"
    mask.write_text(
        json.dumps(
            {"version": "5", "shapes": [shape], "imagePath": "2.png", "imageHeight": 48, "imageWidth": 56}
        )
    )
    with pytest.raises(UserError, match="--classes BACKGROUND,carbide"):
        prepare(request_of(folder, mask=str(mask)), folder / "out")
    inputs = prepare(request_of(folder, mask=str(mask), classes=("matrix", "carbide")), folder / "out").inputs
    assert inputs.reference == "sem/2"
    archive = Archive(inputs.archive)
    labels, counts = np.unique(archive.read_mask(archive.find("sem/2").index), return_counts=True)
    assert labels.tolist() == [0, 1]
    assert counts[1] == pytest.approx(25 * 25 / 2, rel=0.1)


def test_the_results_may_be_in_the_folder_of_the_images(folder: Path) -> None:
    for _ in range(2):
        done = segment(request_of(folder), folder / "sem/out")
        assert [image.name for image in done.measured.record.images] == ["sem/0", "sem/1", "sem/2"]
        assert not done.measured.record.skipped


def test_a_file_of_shapes_names_its_image(folder: Path) -> None:
    category, corners = {"id": 3, "name": "carbide"}, [5, 5, 30, 5, 30, 30]
    tree = {
        "images": [{"id": 7, "file_name": "sem/2.png", "height": 48, "width": 56}],
        "categories": [category],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "segmentation": [corners]}],
    }
    mask = folder / "instances_default.json"
    mask.write_text(json.dumps(tree))
    request = request_of(folder, mask=str(mask), classes=("matrix", "carbide"))
    assert prepare(request, folder / "out").inputs.reference == "sem/2"
    with pytest.raises(UserError, match="folder"):
        prepare(request_of(folder, mask=str(folder / "painted")), folder / "other")


def test_what_the_suggestion_could_not_pack_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "sem/damaged.tif").write_bytes(b"II*\0")
    assert main(["segment", str(folder / "sem"), "--out", str(folder / "an out")]) == 1
    shown = capsys.readouterr()
    assert "damaged.tif" in shown.err
    command = shlex.split(next(line for line in shown.out.splitlines() if line.startswith("then: "))[6:])
    assert command[:3] == ["pscl-hpc", "segment", str(folder / "sem")]
    assert Path(command[4]).is_file()


def test_scribbles_and_the_options_of_images(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        image = micrograph(number)[0]
        pages = np.stack([image[::-1], image]).astype(np.uint16) * 100
        tifffile.imwrite(folder / f"sem/{number}.tif", pages, photometric="minisblack")
        (folder / f"sem/{number}.png").unlink()
    scribbled = (micrograph(1)[1] + 1) * (np.arange(56) % 3 == 0)
    Image.fromarray(scribbled.astype(np.uint8)).save(folder / "painted/1_mask.png")
    words = [
        "segment",
        str(folder / "sem"),
        "--mask",
        str(folder / "painted/1_mask.png"),
        "--out",
        str(folder / "out"),
    ]
    words += ["--scribbles", "--page", "1", "--range", "collection", *SMALL]
    assert main(words) == EXIT_INPUT
    assert "--classes" in capsys.readouterr().err
    assert main([*words, "--classes", "matrix,carbide"]) == 0
    with Archive(folder / "out/archive.h5") as archive:
        assert len({record.high for record in archive.records}) == 1
        mask = archive.read_mask(archive.find("sem/1").index)
        second = tifffile.imread(folder / "sem/1.tif")[1]
        np.testing.assert_array_equal(archive.read_image(archive.find("sem/1").index)[:, :, 0], second)
    np.testing.assert_array_equal(mask, np.where(scribbled > 0, scribbled - 1, 255))
    command = read_measurements(folder / "out/measurements").commands[0]
    assert all(flag in command for flag in ("--scribbles", "--page 1", "--range collection"))


def test_values_that_are_no_class_indices(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(np.array([[0, 127], [200, 0]], np.uint8)).save(path)
    with pytest.raises(UserError, match="--mask-values"):
        numbered_classes(path)
    Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).save(path)
    with pytest.raises(UserError, match="0=CLASS1,255=CLASS2"):
        numbered_classes(path)
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(path)
    with pytest.raises(UserError, match="only the value 0"):
        numbered_classes(path)
    Image.fromarray(np.array([[[0, 0, 0], [255, 0, 0]]], np.uint8)).save(path)
    with pytest.raises(UserError, match="#000000=CLASS1,#ff0000=CLASS2"):
        numbered_classes(path)
    indices = Image.fromarray(np.array([[0, 1], [2, 255]], np.uint8))
    indices.save(path)
    assert numbered_classes(path) == ("class 0", "class 1", "class 2")
    indices.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200] + [9] * 759)  # as the template that is painted
    indices.save(path)
    assert numbered_classes(path) == ("class 0", "class 1", "class 2")
    tifffile.imwrite(path.with_suffix(".tif"), np.array([[0, 1], [2, 1]], np.float32))
    assert numbered_classes(path.with_suffix(".tif")) == ("class 0", "class 1", "class 2")
    tifffile.imwrite(path.with_suffix(".tif"), np.array([[False, True]]))
    assert numbered_classes(path.with_suffix(".tif")) == ("class 0", "class 1")


def test_a_job_does_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "segment",
        str(folder / "sem"),
        "--mask",
        str(folder / "painted/1_mask.png"),
        "--out",
        str(folder / "out"),
    ]
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
