"""Folders, long names and Unicode names as input of predict and evaluate."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from PIL import Image

from pscl_hpc.archive import Collection, ShardWriter
from pscl_hpc.cli.main import main
from pscl_hpc.errors import EXIT_DONE, EXIT_INPUT, EXIT_SKIPPED, UserError
from pscl_hpc.runs import RunFolder
from pscl_hpc.segmentation import evaluate, predict
from pscl_hpc.segmentation.input_files import list_files
from pscl_hpc.segmentation.pictures import picture_name, read_labels

from .helpers import ALLOY, CLASSES, micrograph

LONG = "é" * 118
"""236 bytes; with ``.png`` 240."""
NFC, NFD = normalize("NFC", "Gefüge"), normalize("NFD", "Gefüge")


def save(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(micrograph(seed)[0]).save(path)
    return path


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"text")
    return path


def test_a_folder_stands_for_its_images(
    trained: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    files = [save(images / name, seed) for seed, name in enumerate(("a.png", "b.PNG", "deep/er/c.png"))]
    others = [touch(images / name) for name in (".hidden.png", "notes.txt", "deep/data.csv", ".git/x.png")]
    out = tmp_path / "out"
    command = ["predict", str(trained.path), str(images), "--out", str(out)]
    assert main(command) == EXIT_SKIPPED
    assert {path.name for path in out.glob("*.overlay.png")} == {f"{stem}.overlay.png" for stem in "abc"}
    lines = capsys.readouterr().err.splitlines()
    named = {line.split(":")[0] for line in lines[:-1]}
    assert named == {f"skipped {path}" for path in (*others[:3], images / ".git")}
    assert lines[-1].endswith("segmented: 3, skipped: 4")
    # The same as the files one by one, without anything to skip.
    alone = predict(trained.path, files, out=tmp_path / "alone")
    assert not alone.skipped
    for path in out.iterdir():
        assert path.read_bytes() == (tmp_path / "alone" / path.name).read_bytes()
    shutil.rmtree(images / ".git")
    for path in others[:3]:
        path.unlink()
    assert main(command) == EXIT_DONE
    listed, _ = list_files([str(files[0]), str(images)], out)
    assert len(listed) == 3, "a file that is named twice is listed once"


def test_output_in_the_folder_is_not_taken_as_input(trained: RunFolder, tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    for _ in range(2):
        report = predict(trained.path, [tmp_path], out=tmp_path / "out")
        assert [image.source for image in report.written] == [str(tmp_path / "a.png")]
        assert not report.skipped
    with pytest.raises(UserError, match=r"--out"):
        predict(trained.path, [tmp_path], out=tmp_path)
    # Images below the output folder are input if their folder is named.
    report = predict(trained.path, [save(tmp_path / "out2/in/b.png").parent], out=tmp_path / "out2")
    assert len(report.written) == 1


def test_folders_without_images(
    trained: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    out = ["--out", str(tmp_path / "out")]
    assert main(["predict", str(trained.path), str(empty), *out]) == EXIT_INPUT
    assert str(empty) in capsys.readouterr().err
    touch(tmp_path / "torn/.hidden")
    torn = touch(tmp_path / "torn/a.png")
    assert main(["predict", str(trained.path), str(torn.parent), *out]) == EXIT_INPUT
    assert str(torn) in capsys.readouterr().err
    image = save(tmp_path / "a.png")
    assert main(["predict", str(trained.path), str(empty), str(image), *out]) == EXIT_SKIPPED
    assert f"skipped {empty}" in capsys.readouterr().err


def test_dataset_folders_give_their_images_alone(tmp_path: Path) -> None:
    """As in `archive build`: neither masks nor images in other places."""
    for name in ("one/img/a.png", "one/gt/a.png", "two/images/b.png", "two/extra/c.png", "loose.png"):
        save(tmp_path / name)
    touch(tmp_path / "one/splits.json")
    touch(tmp_path / "one/img/notes.txt")
    for name in ("Thumbs.db", ".DS_Store", "._a.png", "@eaDir/a.png"):
        touch(tmp_path / "one/img" / name)
    out = tmp_path.parent / "out"
    one, two = str(tmp_path / "one/img/a.png"), str(tmp_path / "two/images/b.png")
    files, skipped = list_files([str(tmp_path)], out)
    assert files == [one, two]
    assert {Path(path).name for path, _ in skipped} == {tmp_path.name, "extra", "notes.txt"}
    assert list_files([str(tmp_path / "one")], out) == ([one], [skipped[-1]])
    # The output folder is no place for images.
    assert list_files([str(tmp_path / "two")], tmp_path / "two/extra") == ([two], [])
    shutil.rmtree(tmp_path / "one/img")
    with pytest.raises(UserError, match=r"gt/"):
        list_files([str(tmp_path / "one")], out)


def test_an_image_of_a_kind_that_is_not_read_says_what_to_do(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    touch(tmp_path / "b.webp")
    _, [(path, why)] = list_files([str(tmp_path)], tmp_path / "out")
    assert path.endswith("b.webp")
    assert "export" in why


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    save(tmp_path / "real/a.png")
    touch(tmp_path / "real/notes.txt")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/link").symlink_to(tmp_path / "real")
    (tmp_path / "real/back").symlink_to(tmp_path / "images")
    files, skipped = list_files([str(tmp_path / "images")], tmp_path / "out")
    assert files == [str(tmp_path / "images/link/a.png")]
    assert [path for path, _ in skipped] == [str(tmp_path / "images/link/notes.txt")]


def test_names_of_240_bytes(trained: RunFolder, tmp_path: Path) -> None:
    files = [save(tmp_path / folder / f"{LONG}.png", seed) for seed, folder in enumerate("xy")]
    files.append(save(tmp_path / f"x/{LONG[:-1]}e.png", 2))
    assert len(files[0].name.encode()) == 240
    report = predict(trained.path, files, out=tmp_path / "out")
    assert not report.skipped
    assert len({image.labels for image in report.written}) == 3
    expected = read_labels(
        Path(predict(trained.path, [save(tmp_path / "a.png")], out=tmp_path / "out").written[0].labels)
    )
    np.testing.assert_array_equal(read_labels(Path(report.written[0].labels)), expected)

    run = Path(shutil.copytree(trained.path, tmp_path / "run"))
    names = [f"alloy/{LONG}", f"alloy/{LONG}x"]
    with ShardWriter(tmp_path / "a.h5", [ALLOY]) as writer:
        for seed, name in enumerate(names):
            image, mask = micrograph(seed)
            writer.add(image, mask=mask, id=name, dataset="alloy", split="test")
    for _ in range(2):
        evaluate(run, archive=tmp_path / "a.h5")
    found = {path.name for path in (run / "predictions/test").iterdir()}
    assert found == {f"{picture_name(name)}.png" for name in names}
    by_id = predict(run, names, archive=tmp_path / "a.h5")
    assert [Path(image.labels).name for image in by_id.written] == [
        f"{picture_name(name)}.png" for name in names
    ]
    # Shortened names are in the record, too.
    with ShardWriter(tmp_path / "b.h5", [ALLOY]) as writer:
        writer.add(image, mask=mask, id=names[0], dataset="alloy", split="test")
    evaluate(run, archive=tmp_path / "b.h5")
    assert {path.name for path in (run / "predictions/test").iterdir()} == {f"{picture_name(names[0])}.png"}


@pytest.mark.parametrize(("typed", "stored"), [(NFC, NFD), (NFD, NFC)])
def test_names_are_found_in_either_unicode_normalisation(
    trained: RunFolder, tmp_path: Path, typed: str, stored: str
) -> None:
    save(tmp_path / stored / f"{stored}.png")
    (by_path,) = predict(trained.path, [tmp_path / typed / f"{typed}.png"], out=tmp_path / "out").written
    assert Path(by_path.labels).name == f"{stored}.png"
    (by_folder,) = predict(trained.path, [tmp_path / typed], out=tmp_path / "out").written
    assert by_folder == by_path

    # A run whose reference has the other form than the archive that it is scored on.
    run = Path(shutil.copytree(trained.path, tmp_path / "run"))
    text = (run / "config.yaml").read_text()
    assert text.count("alloy/train0") == 1
    (run / "config.yaml").write_text(text.replace("alloy/train0", f"'{typed}/{typed}'"), encoding="utf-8")
    archive = tmp_path / "a.h5"
    with ShardWriter(archive, [Collection(stored, CLASSES, 0, (3,), ())]) as writer:
        for seed, name in enumerate((f"{stored}/{stored}", f"{stored}/x")):
            image, mask = micrograph(seed)
            writer.add(image, mask=mask, id=name, dataset=stored, split=stored)
    content = evaluate(run, archive=archive, splits=[typed])
    assert [image["id"] for image in content["splits"][stored]["per_image"]] == [f"{stored}/x"]
    report = predict(run, [f"{typed}/{typed}"], archive=archive)
    assert Path(report.written[0].labels).name == f"{stored}__{stored}.png"


def test_a_name_that_is_not_utf_8(
    trained: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    save(tmp_path / "in" / "a.png").rename(tmp_path / "in" / name)
    command = ["predict", str(trained.path), str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--json"]
    assert main(command) == EXIT_DONE
    assert len(json.loads(capsys.readouterr().out)["written"]) == 1
    assert (tmp_path / "out" / name).is_file()
