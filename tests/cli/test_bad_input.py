"""Invalid input: one error line that names the key or file, exit code 2, no traceback, and no files changed or left."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pscl_hpc.cli.main import main
from tests.helpers import micrograph, small_archive


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an archive, two valid configurations and several invalid inputs. Tests do not change it."""
    folder = tmp_path_factory.mktemp("input")
    small_archive(folder / "small.h5")
    pretrain = {
        "kind": "pretrain",
        "data": {"archive": str(folder / "small.h5")},
        "model": {"widths": [4, 8]},
        "views": {"size": [32, 32]},
        "method": {"name": "pscl-simclr", "reference": {"ids": ["alloy/0"]}},
        "schedule": {"steps": 1},
    }
    finetune = {
        "kind": "finetune",
        "data": {"archive": str(folder / "small.h5")},
        "model": {"widths": [4, 8]},
        "references": ["alloy/0"],
        "crop": [32, 32],
        "schedule": {"steps": 1},
    }
    (folder / "pretrain.yaml").write_text(yaml.safe_dump(pretrain))
    (folder / "finetune.yaml").write_text(yaml.safe_dump(finetune))
    (folder / "torn.h5").write_bytes((folder / "small.h5").read_bytes()[:2000])
    (folder / "text.h5").write_text("not HDF5")
    images = folder / "images"
    images.mkdir()
    Image.fromarray(micrograph(0, (40, 40))[0]).save(images / "a.png")
    (folder / "empty").mkdir()
    broken = folder / "broken"
    broken.mkdir()
    (broken / "x.png").write_bytes(b"\x89PNG not really")
    run = folder / "no_run"
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    return folder


PRETRAIN = ["pretrain", "--config", "{in}/pretrain.yaml", "run={out}/run"]
FINETUNE = ["finetune", "--config", "{in}/finetune.yaml", "run={out}/run"]

# Arguments, and what the error has to name.
CASES = {
    "a decimal comma": (
        ["segment", "{in}/images", "--um-per-pixel", "0,05"],
        "give a number, with a decimal point",
    ),
    "an image as archive": (["archive", "info", "{in}/images/a.png"], "a.png is not an archive; make one"),
    "missing configuration": (["pretrain", "--config", "{in}/none.yaml"], "{in}/none.yaml"),
    "configuration is a folder": (["pretrain", "--config", "{in}"], "{in}"),
    "kind is a list": ([*PRETRAIN, "kind=[a]"], "kind"),
    "run below a file": ([*PRETRAIN[:-1], "run={in}/text.h5/x"], "{in}/text.h5/x"),
    "run where no folder can be made": ([*PRETRAIN[:-1], "run=/proc/x"], "/proc/x"),
    "run with a tilde that no shell expanded": ([*PRETRAIN[:-1], "run=~/x"], "'run'"),
    "widths that are not multiples of the head groups": (
        [*PRETRAIN, "model.widths=[6,10]"],
        "method.head_groups",
    ),
    "hidden width that is not a multiple of the head groups": (
        [*PRETRAIN, "model.widths=[8,8]", "method.hidden=6"],
        "method.hidden",
    ),
    "kernels without their device": (
        [*PRETRAIN, "runtime.kernels=triton", "runtime.device=cpu"],
        "runtime.kernels",
    ),
    "unknown split among known ones": (
        [*PRETRAIN, "data.splits=[train,vla]"],
        "'val'",
    ),
    "unknown specimen": (
        [*PRETRAIN, "data.exclude_specimens=[s1]"],
        "data.exclude_specimens",
    ),
    "unknown split in fine-tuning": ([*FINETUNE, "data.splits=[train,vla]"], "'val'"),
    "config of the other kind": (
        ["finetune", "--config", "{in}/pretrain.yaml"],
        "{in}/pretrain.yaml",
    ),
    "misspelt key": ([*PRETRAIN, "schedule.stpes=3"], "'steps'"),
    "value of the wrong type": ([*PRETRAIN, "batch_size=lots"], "batch_size"),
    "value out of range": ([*PRETRAIN, "method.temperature=0"], "method.temperature"),
    "unknown method": ([*PRETRAIN, "method.name=simklr"], "'simclr'"),
    "override without a value": ([*PRETRAIN, "batch_size"], "key=value"),
    "missing archive": ([*PRETRAIN, "data.archive={in}/gone.h5"], "gone.h5"),
    "archive is not HDF5": ([*PRETRAIN, "data.archive={in}/text.h5"], "text.h5"),
    "archive is truncated": ([*PRETRAIN, "data.archive={in}/torn.h5"], "torn.h5"),
    "unknown collection": ([*PRETRAIN, "data.datasets=[aloy]"], "'alloy'"),
    "empty split": ([*PRETRAIN, "data.splits=[nothing]"], "data.splits"),
    "unknown reference": ([*PRETRAIN, "method.reference.ids=[alloy/00]"], "alloy/00"),
    "reference without a mask": ([*PRETRAIN, "method.reference.ids=[other/0]"], "other/0"),
    "reference in the validation split": ([*PRETRAIN, "method.reference.ids=[alloy/5]"], "alloy/5"),
    "run folder with other files": ([*PRETRAIN[:-1], "run={in}/no_run"], "{in}/no_run"),
    "unknown fine-tuning reference": ([*FINETUNE, "references=[alloy/77]"], "alloy/77"),
    "fine-tuning reference without a mask": ([*FINETUNE, "references=[other/0]"], "other/0"),
    "a name that is no name of a folder": ([*FINETUNE, "name=Steel / Test"], "letters, digits"),
    "a reference that is no list": ([*FINETUNE, "references=alloy/0"], "list"),
    "fine-tuning on validation": ([*FINETUNE, "references=[alloy/5]"], "alloy/5"),
    "missing trunk": ([*FINETUNE, "pretrained={in}/gone"], "{in}/gone"),
    "trunk folder without a trunk": ([*FINETUNE, "pretrained={in}/no_run"], "{in}/no_run"),
    "no validation images": ([*FINETUNE, "validation_split=vla"], "vla"),
    "class weights of the wrong number": ([*FINETUNE, "loss.class_weights=[1,2]"], "class_weights"),
    "network deeper than the window": ([*FINETUNE, "model.widths=[4,4,4,4,4,4,4]"], "crop"),
    "pretraining deeper than the window": (
        [*PRETRAIN, "views.size=[16,16]", "model.widths=[4,4,4,4,4,4]"],
        "views.size",
    ),
    "evaluate a folder without a run": (["evaluate", "{in}/no_run"], "{in}/no_run"),
    "evaluate a missing folder": (["evaluate", "{in}/gone"], "{in}/gone"),
    "predict without a run": (["predict", "{in}/no_run", "{in}/images/a.png"], "no_run"),
    "report of a missing folder": (["report", "{in}/gone"], "gone"),
    "build from a missing folder": (["archive", "build", "{in}/gone", "--out", "{out}/a.h5"], "gone"),
    "build from an empty folder": (["archive", "build", "{in}/empty", "--out", "{out}/a.h5"], "empty"),
    "build from broken images only": (["archive", "build", "{in}/broken", "--out", "{out}/a.h5"], "x.png"),
    "info of a file that is not an archive": (["archive", "info", "{in}/text.h5"], "text.h5"),
    "synthesise onto an existing file": (
        ["archive", "synth", "--out", "{in}/small.h5", "--images", "9", "--seed", "0"],
        "small.h5",
    ),
    "unknown command": (["pretrian", "--config", "x"], "pretrian"),
    "unknown stage of a job": (["submit", "segment", "--config", "x"], "study': 'segment'"),
    "unknown option": (["pretrain", "--konfig", "x"], "--konfig"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_error_line_and_exit_code_2(
    case: str,
    shared: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = _snapshot(shared)
    words, expected = CASES[case]
    code = main([word.replace("{in}", str(shared)).replace("{out}", str(tmp_path)) for word in words])
    printed = capfd.readouterr()
    assert code == 2, printed.err
    assert "Traceback" not in printed.err
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, printed.err
    assert expected.replace("{in}", str(shared)) in errors[0]
    assert _snapshot(shared) == before, "files of the user were changed"
    left = [
        path
        for path in tmp_path.rglob("*")
        if path.is_file() and path.suffix in (".pt", ".safetensors", ".h5")
    ]
    assert not left


def test_images_that_cannot_be_read_are_named_and_the_others_archived(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "steel"
    source.mkdir()
    Image.fromarray(np.full((30, 30), 7, np.uint8)).save(source / "good.png")
    (source / "bad.png").write_bytes(b"")
    assert main(["archive", "build", str(source), "--out", str(tmp_path / "a.h5")]) == 1
    assert "bad.png" in "".join(capfd.readouterr())
    assert (tmp_path / "a.h5").exists()


def _snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            stat = os.stat(path)
            found[str(path.relative_to(folder))] = (stat.st_size, stat.st_mtime_ns)
    return found
