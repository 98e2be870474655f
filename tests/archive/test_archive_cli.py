"""The archive commands: output, files and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pscl_hpc.archive import Archive
from pscl_hpc.cli.main import main

from .archives import labels, pool_of, texture


@pytest.fixture
def steel(tmp_path: Path) -> Path:
    folder = tmp_path / "steel"
    for number in range(4):
        for name, image in (("img", texture((60, 80), number)), ("gt", labels((60, 80), number))):
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / name / f"{number}.png")
    return folder


def _build(steel: Path, *more: str) -> int:
    return main(["archive", "build", str(steel), "--classes", "matrix,carbide,pore", *more])


def test_build_info_check(steel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "alloys.h5")
    assert _build(steel, "--out", out) == 0
    assert capsys.readouterr().out.splitlines() == [
        "4 images added, 0 unchanged, 0 skipped; 4 in the archive",
        out,
    ]
    assert main(["archive", "info", out, "--contact-sheet", str(tmp_path / "sheet.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "steel: 4 images, 4 annotated; uint8 grey 4; 60 x 80"
    assert "0 matrix (background), 1 carbide, 2 pore" in lines[1]
    assert lines[-1] == str(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG"
    assert main(["archive", "check", out]) == 0
    assert capsys.readouterr().out.splitlines() == ["4 images checked, 0 findings", out]


def test_one_image_is_singular(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x").mkdir()
    Image.fromarray(texture((20, 30))).save(tmp_path / "x" / "a.png")
    assert main(["archive", "build", str(tmp_path / "x"), "--out", str(tmp_path / "a.h5")]) == 0
    assert capsys.readouterr().out.startswith("1 image added, 0 unchanged, 0 skipped; 1 in the archive")


def test_json_is_one_object(steel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "alloys.h5")
    (steel / "img" / "bad.png").touch()
    Image.fromarray(texture((60, 80), 2)[::-1]).save(steel / "img" / "turned.png")
    assert _build(steel, "--out", out, "--json") == 1
    captured = capsys.readouterr()
    built = json.loads(captured.out)
    assert (built["images"], built["added"]) == (5, 5)
    assert [item["path"] for item in built["skipped"]] == ["steel/img/bad.png"]
    assert f"steel/img/bad.png: {built['skipped'][0]['reason']}" in captured.err
    assert main(["archive", "info", out, "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["fingerprint"] == built["fingerprint"] == Archive(out).fingerprint
    assert info["collections"][0]["sizes"] == [{"height": 60, "width": 80, "images": 5}]
    assert main(["archive", "check", out, "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert [(item["kind"], item["images"]) for item in findings] == [
        ("duplicate", ["steel/2", "steel/turned"])
    ]


def test_a_folder_of_shards(steel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _build(steel, "--out", f"{tmp_path / 'shards'}/", "--shard-size", "5K") == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "shards")
    assert len(Archive(tmp_path / "shards").shards) == 2  # two of 4800 bytes reach 5120
    assert _build(steel, "--out", str(tmp_path / "shards")) == 0
    assert "0 images added, 4 unchanged" in capsys.readouterr().out


def test_synth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "s.h5")
    assert main(["archive", "synth", "--out", out, "--images", "9", "--seed", "3", "--size", "40,64"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == out
    assert {(record.height, record.width) for record in Archive(out).records} == {(40, 64)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "gone", "--out", "a.h5"], "gone"),
        (["build", "empty", "--out", "a.h5"], "empty"),
        (["build", "x", "--out", "alloys"], "--out is alloys"),
        (["build", "x", "--out", "a.h5", "--shard-size", "many"], "--shard-size is 'many'"),
        (["build", "x", "--out", "a.h5", "--colour", "sepia"], "--colour is 'sepia'"),
        (["build", "x", "--out", "a.h5", "--compression", "zip"], "--compression is 'zip'"),
        (["build", "x", "--out", "a.h5", "--crop-bottom", "some"], "--crop-bottom is 'some'"),
        (["build", "x", "--out", "a.h5", "--crop-bottom", "-3"], "--crop-bottom is '-3'"),
        (["build", "x", "--out", "a.h5", "--percentiles", "5"], "--percentiles is '5'"),
        (["build", "x", "--out", "a.h5", "--percentiles", "90,10"], "--percentiles is 90,10"),
        (["build", "x", "--out", "a.h5", "--classes", "a,,b"], "--classes is 'a,,b'"),
        (["build", "x", "--out", "a.h5", "--metadata", "gone.csv"], "gone.csv"),
        (["build", "x", "--out", "mine.h5"], "mine.h5"),
        (["info", "gone.h5"], "gone.h5"),
        (["info", "mine.h5"], "mine.h5"),
        (["info", "good.h5", "--contact-sheet", "a.jpg"], "a.jpg"),
        (["info", "good.h5", "--contact-sheet", "x/a.png"], "x/a.png"),
        (["check", "empty"], "empty"),
        (["synth", "--out", "s.h5", "--size", "40"], "--size is '40'"),
        (["synth", "--out", "s.h5", "--size", "inf,40"], "--size is 'inf,40'"),
        (["synth", "--out", "s.h5", "--size", "40.5,40"], "--size is '40.5,40'"),
        (["synth", "--out", "mine.h5"], "mine.h5"),
    ],
)
def test_wrong_input_is_one_error_line_and_changes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "x").mkdir()
    Image.fromarray(texture((20, 30))).save(tmp_path / "x" / "a.png")
    (tmp_path / "mine.h5").write_text("mine")
    assert main(["archive", "build", "x", "--out", "good.h5"]) == 0
    capsys.readouterr()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main(["archive", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert not captured.out
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_build_options_reach_the_archive(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    colour = np.stack([texture((60, 80), seed) for seed in range(3)], axis=2)
    Image.fromarray(colour).save(tmp_path / "x" / "a.png")
    out = str(tmp_path / "a.h5")
    options = ["--colour", "luma", "--crop-bottom", "7", "--compression", "lzf"]
    assert main(["archive", "build", str(tmp_path / "x"), "--out", out, *options]) == 0
    record = Archive(out).records[0]
    assert (record.channels, record.height) == (1, 53)
    assert pool_of(Archive(out), 0).codec.name == "lzf"


@pytest.mark.parametrize("command", ["build", "info", "check", "synth", "compare", "suggest"])
def test_every_help_page_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["archive", command, "--help"]) == 0
    assert f"pscl-hpc archive {command}" in capsys.readouterr().out
