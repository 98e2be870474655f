"""The command and its picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pscl_hpc.archive import Archive
from pscl_hpc.cli.main import main
from pscl_hpc.suggestion import FILTERS, dense_features, draw, suggest

from .textures import textured_archive

KINDS = {f"a{i}": "fine" for i in range(3)} | {f"b{i}": "coarse" for i in range(3)}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return textured_archive(tmp_path_factory.mktemp("suggest") / "a.h5", KINDS)


def run(file: Path, *more: str) -> int:
    return main(["archive", "suggest", str(file), "--trunk", "filters", *more])


def test_text_warning_and_picture(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "why.png"
    assert run(file, "--out", str(picture)) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0].startswith("6 images")
    assert lines[1].startswith("1. steel/")
    assert lines[-1] == str(picture)
    assert said.err.startswith("warning: 3 images")
    assert "--count 2" in said.err
    with Image.open(picture) as image:
        assert image.format == "PNG"


def test_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(file, "--count", "2", "--dataset", "steel", "--json") == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert {item["image"][:7] for item in found["suggested"]} == {"steel/a", "steel/b"}
    assert found["enough"] == [item["image"] for item in found["suggested"]]
    assert found["different"] == []
    assert len(found["candidates"]) == found["images"] == 6
    assert all(abs(sum(item["textures"]) - 1) < 1e-2 for item in found["candidates"])
    assert not said.err


def test_dark_patches_are_those_not_covered(file: Path, tmp_path: Path) -> None:
    """The pixels of the group that is not covered get lighter when one of it is suggested, too."""
    archive = Archive(file)
    pictures = []
    for count in (1, 2):
        found = suggest(archive, dense_features(FILTERS), count=count)
        draw(archive, found, tmp_path / f"{count}.png")
        pictures.append(np.asarray(Image.open(tmp_path / f"{count}.png").convert("L"), float))
    assert found.chosen[1] in found.enough
    dark = [(picture < 60).mean() for picture in pictures]
    assert dark[0] > 2 * dark[1]


def test_a_picture_of_many_images_shows_some(tmp_path: Path) -> None:
    heights = []
    for number in (24, 30):
        kinds = {f"a{i:02}": "fine" for i in range(number)}
        archive = Archive(textured_archive(tmp_path / f"{number}.h5", kinds, size=(32, 32)))
        draw(archive, suggest(archive, dense_features(FILTERS)), tmp_path / f"{number}.png")
        with Image.open(tmp_path / f"{number}.png") as picture:
            heights.append(picture.height)
    assert abs(heights[1] - heights[0]) < 200  # more text, but not one more row of images


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--dataset", "stel"], "stel"),
        (["--splits", "tset"], "tset"),
        (["--count", "0"], "--count"),
        (["--count", "99"], "--count"),
        (["--trunk", "gone"], "gone"),
        (["--out", "a.jpg"], "a.jpg"),
    ],
)
def test_wrong_input(file: Path, more: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(file, *more) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert named in said.err


def test_an_existing_picture_is_kept(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "why.png").write_text("mine")
    assert run(file, "--out", str(tmp_path / "why.png")) == 2
    assert (tmp_path / "why.png").read_text() == "mine"
