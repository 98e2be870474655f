"""A call that is repeated: after a kill, with more images, or with another request."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pscl_hpc.archive import Archive
from pscl_hpc.cli.main import main
from pscl_hpc.cli.signals import stop_in_training
from pscl_hpc.errors import EXIT_INPUT, EXIT_STOPPED, UserError
from pscl_hpc.metallography.record import read_measurements
from pscl_hpc.runs import RunFolder
from pscl_hpc.segmentation import finetune
from pscl_hpc.segmentation.config import FinetuneConfig
from pscl_hpc.training import StopRequested
from pscl_hpc.workflow import segment, suggest_annotation
from pscl_hpc.workflow.request import PAGE, REQUEST_FILE, read_request
from pscl_hpc.workflow.segment import prepare

from .material import SMALL, micrograph, request_of, words_of


def test_the_same_call_resumes_after_a_kill(folder: Path) -> None:
    command = [
        sys.executable, "-m", "pscl_hpc.cli", *words_of(folder), "--classes", "matrix,carbide",
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
    # The training would go on with the mask that it began with, and never see this one.
    mask = folder / "painted/1_mask.png"
    painted = mask.read_bytes()
    Image.fromarray(1 - micrograph(1)[1]).save(mask)
    with pytest.raises(UserError, match="--out"):
        segment(request, out)
    mask.write_bytes(painted)
    assert Archive(out / "archive.h5").fingerprint == before
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


def test_a_mask_that_is_corrected_before_the_training(folder: Path) -> None:
    mask = folder / "painted/1_mask.png"
    painted = mask.read_bytes()
    Image.fromarray(np.zeros((48, 56), np.uint8)).save(mask)
    request = request_of(folder, classes=("matrix", "carbide"))
    with pytest.raises(UserError, match="sem/1"):
        segment(request, folder / "out")
    mask.write_bytes(painted)
    archive = Archive(prepare(request, folder / "out").inputs.archive)
    assert np.array_equal(archive.read_mask(archive.find("sem/1").index), micrograph(1)[1])


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


@pytest.mark.parametrize("name", ["archive.h5", "annotation.csv", "report.html"])
def test_files_of_another_origin_are_kept(folder: Path, name: str) -> None:
    out = folder / "out"
    out.mkdir()
    (out / name).write_text("mine")
    with pytest.raises(UserError, match=f"{name}: is not from 'segment'"):
        segment(request_of(folder), out)
    with pytest.raises(UserError, match=f"{name}: is not from 'segment'"):
        suggest_annotation(request_of(folder, masks=()), out)
    assert [path.name for path in out.iterdir()] == [name]
    assert (out / name).read_text() == "mine"


def test_a_folder_that_is_not_there_leaves_nothing(folder: Path) -> None:
    for masks in ((), (str(folder / "painted/1_mask.png"),)):
        assert main(["segment", str(folder / "sme"), "--out", str(folder / "out"),
                     *(word for mask in masks for word in ("--mask", mask))]) == EXIT_INPUT  # fmt: skip
    assert not (folder / "out").exists()


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT as in a terminal; workers of a parallel test run ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_a_request_to_stop_that_comes_late_ends_the_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def trained(config: FinetuneConfig, **rest: object) -> None:
        finetune(config)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(sys.modules["pscl_hpc.workflow.segment"], "finetune", trained)
    with pytest.raises(SystemExit) as ended:
        main([*words_of(folder), *SMALL])
    assert ended.value.code == EXIT_STOPPED
    assert "stopped: Ctrl-C; run the same command to resume" in capsys.readouterr().err
    assert not (folder / "out/measurements").exists()
    monkeypatch.undo()

    def measured(*given: object, **rest: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    # After the training Ctrl-C ends the command at once.
    monkeypatch.setattr(sys.modules["pscl_hpc.workflow.segment"], "measure", measured)
    with pytest.raises(KeyboardInterrupt):
        segment(request_of(folder), folder / "out", training=stop_in_training)
    monkeypatch.undo()
    assert main([*words_of(folder), *SMALL]) == 0


def test_a_folder_of_the_same_name_elsewhere_does_not_get_the_template(folder: Path) -> None:
    suggest_annotation(request_of(folder, masks=()), folder / "out")
    shutil.copytree(folder / "sem", folder / "other/sem")
    wanted = request_of(folder, masks=(), folder=str(folder / "other/sem"))
    with pytest.raises(
        UserError, match=r"has the results of another call \(folder: .*/sem there, .*/other/sem here\)"
    ):
        suggest_annotation(wanted, folder / "out")
