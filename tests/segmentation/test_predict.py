"""Prediction of files, folders and archive images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from pscl_hpc.archive import Archive
from pscl_hpc.errors import UserError
from pscl_hpc.runs import RunFolder
from pscl_hpc.segmentation import evaluate, predict
from pscl_hpc.segmentation.pictures import read_labels

from .helpers import SCRATCH, micrograph


def save(folder: Path, name: str, pixels: np.ndarray) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels)
    else:
        Image.fromarray(pixels).save(path)
    return path


def labels_of(report_folder: Path, stem: str) -> np.ndarray:
    return read_labels(report_folder / f"{stem}.png")


def test_a_file_is_segmented_like_the_image_in_the_archive(
    trained: RunFolder, archive_file: Path, tmp_path: Path
) -> None:
    archive = Archive(archive_file)
    pixels = archive.read_image(archive.find("alloy/test0").index)[:, :, 0]
    file = save(tmp_path, "test0.png", pixels)
    report = predict(trained.path, [file], out=tmp_path / "out")
    by_id = predict(trained.path, ["alloy/test0"], archive=archive_file, out=tmp_path / "ids")
    assert np.array_equal(labels_of(report.folder, "test0"), labels_of(by_id.folder, "alloy__test0"))
    evaluate(trained.path)
    scored = read_labels(trained.path / "predictions/test/alloy__test0.png")
    assert np.array_equal(labels_of(report.folder, "test0"), scored)
    assert Path(report.written[0].labels) == tmp_path / "out/test0.png"
    assert np.array(Image.open(report.written[0].overlay)).shape == (*pixels.shape, 3)
    assert SCRATCH not in scored


def test_depth_colour_and_odd_sizes(trained: RunFolder, tmp_path: Path) -> None:
    image, mask = micrograph(30, 61, 83)
    deep = image.astype(np.uint16) * 200 + 1000
    files = [
        save(tmp_path, "eight.png", image),
        save(tmp_path, "sixteen.tif", deep),
        save(tmp_path, "real.tif", (image / 255).astype(np.float32)),
        save(tmp_path, "grey-as-rgb.png", np.repeat(image[..., None], 3, axis=2)),
        save(tmp_path, "tiny.png", image[:1, :3]),
        save(tmp_path, "colour.png", np.dstack([image, image // 2, 255 - image])),
    ]
    report = predict(trained.path, files, out=tmp_path / "out")
    assert not report.skipped
    eight = labels_of(report.folder, "eight")
    assert np.array_equal(labels_of(report.folder, "grey-as-rgb"), eight)
    assert sum("in colour" in warning for warning in report.warnings) == 1
    assert any(warning.startswith(str(files[-1])) for warning in report.warnings)
    known = (mask != 255) & (mask != SCRATCH)
    for stem in ("eight", "sixteen", "real"):
        labels = labels_of(report.folder, stem)
        assert labels.shape == (61, 83)
        assert (labels == mask)[known].mean() > 0.85
    assert labels_of(report.folder, "tiny").shape == (1, 3)
    assert not [path for path in report.folder.iterdir() if path.name.startswith(".")]


def test_pages_of_a_file_are_segmented_one_by_one(trained: RunFolder, tmp_path: Path) -> None:
    first, second = micrograph(31)[0], micrograph(32)[0]
    stack = save(tmp_path, "stack.tif", np.stack([first, second]))
    alone = save(tmp_path, "alone.png", second)
    report = predict(trained.path, [stack, alone], out=tmp_path / "out")
    assert len(report.written) == 3
    assert np.array_equal(labels_of(report.folder, "stack#1"), labels_of(report.folder, "alone"))


def test_unreadable_files_are_skipped_and_named(trained: RunFolder, tmp_path: Path) -> None:
    good = save(tmp_path, "good.png", micrograph(33)[0])
    torn = tmp_path / "torn.png"
    torn.write_bytes(good.read_bytes()[:200])
    text = tmp_path / "notes.txt"
    text.write_text("no image")
    report = predict(trained.path, [torn, good, text, tmp_path / "gone.png"], out=tmp_path / "out")
    assert [Path(image.source) for image in report.written] == [good]
    assert [Path(name) for name, _ in report.skipped] == [torn, text, tmp_path / "gone.png"]
    assert {path.name for path in report.folder.iterdir()} == {"good.png", "good.overlay.png"}
    with pytest.raises(UserError, match=r"torn\.png \(and 1 others\)"):
        predict(trained.path, [torn, text], out=tmp_path / "out")


def test_a_file_with_other_content_is_never_overwritten(trained: RunFolder, tmp_path: Path) -> None:
    image = save(tmp_path, "a.png", micrograph(34)[0])
    other = save(tmp_path, "b.png", micrograph(35)[0])
    out = tmp_path / "out"
    predict(trained.path, [image], out=out)
    first = (out / "a.png").read_bytes()
    assert not predict(trained.path, [image], out=out).skipped
    save(tmp_path, "a.png", micrograph(36)[0])
    report = predict(trained.path, [image, other], out=out)
    assert [name for name, _ in report.skipped] == [str(image)]
    assert "--out" in report.skipped[0][1]
    assert (out / "a.png").read_bytes() == first
    # The output folder is the folder of the images.
    content = other.read_bytes()
    with pytest.raises(UserError, match=r"b\.png.*--out"):
        predict(trained.path, [other], out=tmp_path)
    assert other.read_bytes() == content
    assert not (tmp_path / "b.overlay.png").exists()
    with pytest.raises(UserError, match=r"a\.png.*--out"):
        predict(trained.path, [other], out=image)


def test_an_output_folder_that_cannot_be_made_is_refused(trained: RunFolder, tmp_path: Path) -> None:
    image = save(tmp_path, "a.png", micrograph(37)[0])
    for out in (image / "below" / "out", Path("/proc/pscl-hpc-out")):
        with pytest.raises(UserError, match=f"{out}.*--out"):
            predict(trained.path, [image], out=out)


def test_an_output_folder_that_is_not_writable_is_refused(trained: RunFolder, tmp_path: Path) -> None:
    image = save(tmp_path, "a.png", micrograph(37)[0])
    with pytest.raises(UserError, match=r"/proc/self.*--out"):
        predict(trained.path, [image], out="/proc/self")


def test_files_with_the_same_stem_have_different_outputs(trained: RunFolder, tmp_path: Path) -> None:
    names = ["x/same.png", "y/same.png", "y/same.tif", "y/only.png"]
    files = [save(tmp_path, name, micrograph(place)[0]) for place, name in enumerate(names)]
    report = predict(trained.path, files, out=tmp_path / "out")
    assert len(report.written) == 4
    assert len({image.labels for image in report.written}) == 4
    assert (tmp_path / "out/only.png").is_file()


def test_ids_must_be_in_the_archive(trained: RunFolder, archive_file: Path, tmp_path: Path) -> None:
    report = predict(trained.path, ["alloy/tset0", "alloy/test0"], archive=archive_file, out=tmp_path / "out")
    assert [name for name, _ in report.skipped] == ["alloy/tset0"]
    assert "alloy/test0" in report.skipped[0][1]
    with pytest.raises(UserError, match="predict"):
        predict(trained.path, [])


def test_another_depth_or_range_than_in_training_is_named(
    trained: RunFolder, archive_file: Path, tmp_path: Path
) -> None:
    """Networks segment the same fields worse after another scaling."""
    image = micrograph(30, 61, 83)[0]
    deep = save(tmp_path, "sixteen.tif", image.astype(np.uint16) * 200)
    report = predict(trained.path, [deep, save(tmp_path, "eight.png", image)], out=tmp_path / "out")
    [warning] = [text for text in report.warnings if "8-bit" in text]
    assert warning.startswith(f"{deep}: 16-bit")
    assert not predict(trained.path, ["alloy/test0"], archive=archive_file, out=tmp_path / "ids").warnings
    for known, warned in (([0, 50000], False), ([0, 4095], True), ([0, 1e9], True)):
        run = shutil.copytree(trained.path, tmp_path / f"run{known[1]}")
        record = json.loads((run / "run.json").read_text())
        assert record["intensity_ranges"] == {"uint8": [0, 255]}
        record["intensity_ranges"] = {"uint16": known}
        (run / "run.json").write_text(json.dumps(record))
        warnings = predict(run, [deep], out=tmp_path / f"out{known[1]}").warnings
        assert any(f"0 to {known[1]:g}" in text for text in warnings) == warned


def test_masks_in_the_folder_of_the_images_are_not_segmented(trained: RunFolder, tmp_path: Path) -> None:
    image, mask = micrograph(30, 61, 83)
    save(tmp_path / "x", "0.tif", image)
    save(tmp_path / "x", "0_mask.png", mask)
    report = predict(trained.path, [tmp_path / "x"], out=tmp_path / "out")
    assert [Path(item.source).name for item in report.written] == ["0.tif"]
