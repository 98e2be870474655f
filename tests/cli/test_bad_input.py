"""Wrong input: one clear sentence on stderr, exit code 2, no traceback, and nothing is lost or left behind."""

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
    """A folder with an archive and two valid configurations, read only."""
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
    (folder / "text.h5").write_text("this is no HDF5")
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

CASES = {
    "no such config": (["pretrain", "--config", "{in}/none.yaml"], "no such configuration file"),
    "config is a folder": (["pretrain", "--config", "{in}"], "is a folder"),
    "kind is a list": ([*PRETRAIN, "kind=[a]"], "kind is '['a']'"),
    "run below a file": ([*PRETRAIN[:-1], "run={in}/text.h5/x"], "the run folder"),
    "run where nothing can be made": ([*PRETRAIN[:-1], "run=/proc/x"], "the run folder"),
    "run in a home that no shell expanded": ([*PRETRAIN[:-1], "run=~/x"], "write the folder in full"),
    "widths that heads do not divide": (
        [*PRETRAIN, "model.widths=[6,10]"],
        "model.widths has 6, which is no multiple of method.head_groups (4)",
    ),
    "hidden width that heads do not divide": (
        [*PRETRAIN, "model.widths=[8,8]", "method.hidden=6"],
        "method.hidden has 6",
    ),
    "kernels without their device": (
        [*PRETRAIN, "runtime.kernels=triton", "runtime.device=cpu"],
        "runtime.kernels is 'triton'",
    ),
    "unknown split among known ones": (
        [*PRETRAIN, "data.splits=[train,vla]"],
        "data.splits: no image of {in}/small.h5 is in the splits ['vla']; did you mean 'val'?",
    ),
    "unknown specimen": (
        [*PRETRAIN, "data.exclude_specimens=[s1]"],
        "data.exclude_specimens: {in}/small.h5 has no specimen 's1'",
    ),
    "unknown split in fine-tuning": ([*FINETUNE, "data.splits=[train,vla]"], "did you mean 'val'?"),
    "config of the other kind": (
        ["finetune", "--config", "{in}/pretrain.yaml"],
        "this is a pretrain configuration",
    ),
    "misspelt key": ([*PRETRAIN, "schedule.stpes=3"], "did you mean 'steps'?"),
    "value of the wrong type": ([*PRETRAIN, "batch_size=lots"], "batch_size"),
    "value out of range": ([*PRETRAIN, "method.temperature=0"], "method.temperature"),
    "unknown method": ([*PRETRAIN, "method.name=simklr"], "did you mean 'simclr'?"),
    "no override": ([*PRETRAIN, "batch_size"], "write key=value"),
    "no such archive": ([*PRETRAIN, "data.archive={in}/gone.h5"], "gone.h5"),
    "archive is no HDF5": ([*PRETRAIN, "data.archive={in}/text.h5"], "text.h5"),
    "archive is torn": ([*PRETRAIN, "data.archive={in}/torn.h5"], "torn.h5"),
    "unknown data set": ([*PRETRAIN, "data.datasets=[aloy]"], "did you mean 'alloy'?"),
    "empty split": ([*PRETRAIN, "data.splits=[nothing]"], "data.splits"),
    "unknown reference": ([*PRETRAIN, "method.reference.ids=[alloy/00]"], "alloy/00"),
    "reference without a mask": ([*PRETRAIN, "method.reference.ids=[other/0]"], "has no mask"),
    "reference that scores": ([*PRETRAIN, "method.reference.ids=[alloy/5]"], "split 'val'"),
    "run folder with other things": ([*PRETRAIN[:-1], "run={in}/no_run"], "no_run: "),
    "fine-tuning reference unknown": ([*FINETUNE, "references=[alloy/77]"], "alloy/77"),
    "fine-tuning reference without a mask": ([*FINETUNE, "references=[other/0]"], "mask"),
    "fine-tuning on validation": ([*FINETUNE, "references=[alloy/5]"], "val"),
    "no such trunk": ([*FINETUNE, "pretrained={in}/gone"], "gone"),
    "trunk folder without a trunk": ([*FINETUNE, "pretrained={in}/no_run"], "is the run finished?"),
    "no validation images": ([*FINETUNE, "validation_split=vla"], "vla"),
    "class weights of the wrong number": ([*FINETUNE, "loss.class_weights=[1,2]"], "class_weights"),
    "network deeper than the window": ([*FINETUNE, "model.widths=[4,4,4,4,4,4,4]"], "enlarge crop"),
    "pretraining deeper than the window": (
        [*PRETRAIN, "views.size=[16,16]", "model.widths=[4,4,4,4,4,4]"],
        "32",
    ),
    "evaluate what is no run": (["evaluate", "{in}/no_run"], "not a run folder"),
    "evaluate what is not there": (["evaluate", "{in}/gone"], "run folder"),
    "predict without a run": (["predict", "{in}/no_run", "{in}/images/a.png"], "no_run"),
    "report of nothing": (["report", "{in}/gone"], "gone"),
    "pack a missing folder": (["archive", "build", "{in}/gone", "--out", "{out}/a.h5"], "gone"),
    "pack an empty folder": (["archive", "build", "{in}/empty", "--out", "{out}/a.h5"], "empty"),
    "pack only broken images": (["archive", "build", "{in}/broken", "--out", "{out}/a.h5"], "x.png"),
    "look into no archive": (["archive", "info", "{in}/text.h5"], "text.h5"),
    "synthesise onto a file": (
        ["archive", "synth", "--out", "{in}/small.h5", "--images", "9", "--seed", "0"],
        "small.h5",
    ),
    "unknown command": (["pretrian", "--config", "x"], "pretrian"),
    "unknown option": (["pretrain", "--konfig", "x"], "--konfig"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_sentence_and_exit_code_2(
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
    assert expected.replace("{in}", str(shared)) in printed.err
    assert "Traceback" not in printed.err
    sentence = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(sentence) == 1, printed.err
    assert _snapshot(shared) == before, "nothing of the user's changes"
    left = [
        path
        for path in tmp_path.rglob("*")
        if path.is_file() and path.suffix in (".pt", ".safetensors", ".h5")
    ]
    assert not left


def test_there_are_at_least_twenty_kinds() -> None:
    assert len(CASES) >= 20


def test_unreadable_images_are_named_and_the_rest_is_packed(
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
