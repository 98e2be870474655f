"""A file is segmented like the same image in an archive, whatever options the archive was built with."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageDraw

from pscl_hpc.archive import Archive
from pscl_hpc.archive.build import BuildOptions, build
from pscl_hpc.archive.ingest.sources import plan
from pscl_hpc.archive.options import AUTO_CROP, IngestOptions, options_to_tree
from pscl_hpc.cli.main import main
from pscl_hpc.errors import EXIT_DONE, EXIT_INPUT, UserError
from pscl_hpc.runs import RunFolder
from pscl_hpc.segmentation import PredictReport, finetune, predict
from pscl_hpc.segmentation.pictures import read_labels

from .helpers import CLASSES, SCRATCH, micrograph, settings

Copy = Callable[[Any], Path]
BAR = 18
NARROW = IngestOptions((5.0, 60.0))
DEFAULTS = IngestOptions()


def grey8(seed: int) -> np.ndarray:
    return micrograph(seed, 96, 160)[0]


def grey16(seed: int) -> np.ndarray:
    """16 bits, with a few very bright pixels, so that percentiles matter."""
    image = grey8(seed).astype(np.uint16) * 40 + 500
    image[::7, ::5] = 65000
    return image


def colour16(seed: int) -> np.ndarray:
    """Channels of very different range, so that the order of scaling and luma matters."""
    image = grey16(seed)
    return np.stack([image, image // 30, 60000 - image // 2], axis=2)


def colour8(seed: int) -> np.ndarray:
    image = grey8(seed)
    return np.stack([image, 255 - image, image // 3], axis=2)


def with_bar(image: np.ndarray) -> np.ndarray:
    """``image`` with an information bar in place of its lowest rows."""
    bar = Image.new("L", (image.shape[1], BAR))
    ImageDraw.Draw(bar).text((4, 3), "EHT = 15.00 kV  WD = 8.5 mm", 255)
    white = 255 if image.dtype == np.uint8 else 65535
    out = image.copy()
    out[-BAR:] = np.where(np.asarray(bar) > 99, white, 0)
    return out


def save(path: Path, pixels: np.ndarray) -> Path:
    if path.suffix == ".tif":
        tifffile.imwrite(
            path, pixels, photometric="rgb" if pixels.ndim == 3 and pixels.shape[2] == 3 else None
        )
    else:
        Image.fromarray(pixels).save(path)
    return path


def packed(files: list[Path], out: Path, options: IngestOptions) -> Path:
    build(plan(files), out, BuildOptions(**vars(options)))
    return out


@pytest.fixture(autouse=True)
def no_intensity_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs of this module are trained on 8-bit images; its files have any depth."""
    monkeypatch.setattr(sys.modules["pscl_hpc.segmentation.predict"], "intensity_warnings", lambda *_: [])


@pytest.fixture
def run_with(trained: RunFolder, tmp_path: Path) -> Copy:
    """Makes copies of a trained run with another ``ingest_options`` in run.json."""
    made = 0

    def copy(entry: Any) -> Path:
        nonlocal made
        made += 1
        target = tmp_path / f"run{made}"
        shutil.copytree(trained.path, target, ignore=shutil.ignore_patterns("checkpoints", "predictions"))
        record = json.loads((target / "run.json").read_text())
        assert "ingest_options" in record
        record["ingest_options"] = entry
        (target / "run.json").write_text(json.dumps(record))
        return target

    return copy


def entry(*annotated: IngestOptions | None, unlabelled: tuple[IngestOptions, ...] = ()) -> dict[str, Any]:
    return {
        "annotated": [None if options is None else options_to_tree(options) for options in annotated],
        "unlabelled": [options_to_tree(options) for options in unlabelled],
    }


def only_labels(report: PredictReport) -> np.ndarray:
    assert len(report.written) == 1
    return read_labels(Path(report.written[0].labels))


@pytest.mark.parametrize(
    ("pixels", "name", "options"),
    [
        (grey16(40), "a.tif", NARROW),
        ((grey16(41) / 7).astype(np.float32), "a.tif", NARROW),
        (colour16(42), "a.tif", IngestOptions(luma=True)),
        (colour16(43), "a.tif", IngestOptions((2.0, 70.0), luma=True, crop_bottom=9)),
        (with_bar(grey16(44)), "a.tif", IngestOptions((5.0, 60.0), crop_bottom=AUTO_CROP)),
        (with_bar(grey16(45)), "a.tif", IngestOptions(crop_bottom=BAR)),
        (with_bar(grey8(46)), "a.png", IngestOptions(crop_bottom=AUTO_CROP)),
        (colour8(47), "a.png", IngestOptions(luma=True, crop_bottom=1)),
    ],
    ids=["grey16", "float", "colour16", "all", "bar16", "rows16", "bar8", "colour8"],
)
def test_a_file_is_segmented_like_the_image_in_the_archive(
    run_with: Copy, tmp_path: Path, pixels: np.ndarray, name: str, options: IngestOptions
) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    file = save(folder / name, pixels)
    archive = packed([folder], tmp_path / "a.h5", options)
    run = run_with(entry(options))
    by_id = only_labels(predict(run, ["x/a"], archive=archive, out=tmp_path / "ids"))
    report = predict(run, [file], out=tmp_path / "files")
    labels = only_labels(report)
    assert (report.options, report.warnings) == (options, [])
    height = Archive(archive).records[0].height
    cut = pixels.shape[0] - height
    assert cut == report.written[0].cropped
    assert cut == (BAR if options.crop_bottom == AUTO_CROP else options.crop_bottom)
    assert labels.shape == pixels.shape[:2]
    np.testing.assert_array_equal(labels[:height], by_id)
    assert (labels[height:] == 255).all()
    assert not (by_id == 255).any()
    # The same options as flags; and the defaults give another result.
    given = dict(vars(options))
    by_flags = only_labels(predict(run_with(entry(None)), [file], out=tmp_path / "flags", **given))
    np.testing.assert_array_equal(by_flags, labels)
    plain = only_labels(predict(run_with(entry(None)), [file], out=tmp_path / "plain"))
    assert not np.array_equal(plain, labels)


def test_a_cropped_bar_is_in_the_overlay_without_colour(run_with: Copy, tmp_path: Path) -> None:
    image = with_bar(grey8(50))
    file = save(tmp_path / "a.png", image)
    run = run_with(entry(IngestOptions(crop_bottom=AUTO_CROP)))
    report = predict(run, [file], out=tmp_path / "out")
    overlay = np.asarray(Image.open(report.written[0].overlay))
    assert overlay.shape == (*image.shape, 3)
    np.testing.assert_array_equal(overlay[-BAR:], np.repeat(image[-BAR:, :, None], 3, axis=2))
    assert (overlay[:-BAR] != image[:-BAR, :, None]).any()
    assert report.bars == [(str(file), BAR)]
    assert predict(run, [save(tmp_path / "b.png", grey8(50))], out=tmp_path / "out").bars == []


def test_each_page_is_cropped(run_with: Copy, tmp_path: Path) -> None:
    stack = np.stack([micrograph(seed, 24, 32)[0] for seed in range(12)])
    stack[:, -5:] = 255 - stack[:, -5:]
    run = run_with(entry(IngestOptions(crop_bottom=5)))
    report = predict(run, [save(tmp_path / "stack.tif", stack)], out=tmp_path / "out")
    assert [image.cropped for image in report.written] == [5] * 12
    for number in (1, 2, 10):
        alone = save(tmp_path / f"alone{number}.png", stack[number, :-5])
        expected = only_labels(predict(run_with(entry(None)), [alone], out=tmp_path / "out"))
        labels = read_labels(tmp_path / f"out/stack#{number}.png")
        np.testing.assert_array_equal(labels[:-5], expected)


def test_a_page_with_too_few_rows_is_skipped(run_with: Copy, tmp_path: Path) -> None:
    files = [save(tmp_path / f"{rows}.png", grey8(51)[:rows]) for rows in (9, 10)]
    report = predict(run_with(entry(None)), files, out=tmp_path / "out", crop_bottom=9)
    ((name, reason),) = report.skipped
    assert Path(name).name == "9.png"
    assert "9 rows" in reason
    assert report.written[0].cropped == 9


def test_fine_tuning_records_the_options_of_its_images(tmp_path: Path) -> None:
    """From images to archive, run and prediction; with unlabelled images of another build."""
    alloy = tmp_path / "alloy"
    for folder in ("img", "gt"):
        (alloy / folder).mkdir(parents=True)
    for number in range(3):
        image, mask = micrograph(number, 64, 72)
        save(alloy / "img" / f"{number}.tif", image.astype(np.uint16) * 40 + 7)
        save(alloy / "gt" / f"{number}.png", mask)
    splits = {"classes": list(CLASSES), "ignore_classes": [SCRATCH], "train": ["0.tif"], "val": ["1.tif"]}
    (alloy / "splits.json").write_text(json.dumps(splits))
    pool = tmp_path / "pool"
    pool.mkdir()
    save(pool / "a.png", grey8(60))
    options = IngestOptions((2.0, 80.0), crop_bottom=6)
    archive = packed([alloy], tmp_path / "a.h5", options)
    packed([pool], archive, DEFAULTS)
    config = settings(
        archive,
        tmp_path / "run",
        references=["alloy/0"],
        schedule={"steps": 2},
        semi_supervised={"datasets": ["alloy", "pool"], "splits": ["train", ""], "batch_size": 1},
    )
    run = finetune(config)
    expected = {
        "annotated": [options_to_tree(options)],
        "unlabelled": [options_to_tree(options), options_to_tree(DEFAULTS)],
    }
    assert RunFolder.load(run.path).record["ingest_options"] == expected
    by_id = only_labels(predict(run.path, ["alloy/2"], archive=archive, out=tmp_path / "ids"))
    report = predict(run.path, [alloy / "img/2.tif"], out=tmp_path / "files")
    np.testing.assert_array_equal(only_labels(report)[:-6], by_id)
    percentiles, crop = report.warnings
    assert "--percentiles 2,80" in percentiles
    assert "--crop-bottom 6" in crop


def test_images_added_from_python_have_unknown_options(trained: RunFolder, tmp_path: Path) -> None:
    assert trained.record["ingest_options"] == {"annotated": [None], "unlabelled": []}
    report = predict(trained.path, [save(tmp_path / "a.tif", grey16(52))], out=tmp_path / "out")
    assert len(report.warnings) == 1
    assert report.options == DEFAULTS


def test_defaults_are_named_only_where_other_values_could_matter(run_with: Copy, tmp_path: Path) -> None:
    run = run_with(entry(None))

    def warnings_for(pixels: np.ndarray, name: str, **given: Any) -> list[str]:
        return predict(run, [save(tmp_path / name, pixels)], out=tmp_path / "out", **given).warnings

    assert warnings_for(grey8(53), "grey.png") == []
    assert warnings_for(np.repeat(grey8(53)[..., None], 3, axis=2), "grey-as-rgb.png") == []
    (deep,) = warnings_for(grey16(53), "deep.tif")
    for part in (run, "--percentiles 0.5,99.5", tmp_path / "deep.tif"):
        assert str(part) in deep
    assert warnings_for(grey16(53), "deep.tif", percentiles=(0.5, 99.5)) == []
    colour, brightness = warnings_for(colour8(53), "colour.png")
    assert "--colour keep" in colour
    assert "in colour" in brightness
    (bar,) = warnings_for(with_bar(grey8(53)), "bar.png")
    assert "--crop-bottom 0" in bar
    assert len(warnings_for(with_bar(grey16(54)), "all.tif")) == 2
    given = {"percentiles": (0.5, 99.5), "crop_bottom": 0}
    assert warnings_for(with_bar(grey16(54)), "all.tif", **given) == []
    files = [save(tmp_path / f"{place}.tif", grey16(place)) for place in range(3)]
    (several,) = predict(run, files, out=tmp_path / "out").warnings
    assert f"{files[0]} and 2 more" in several


def test_images_with_different_options(run_with: Copy, tmp_path: Path) -> None:
    file = save(tmp_path / "a.tif", grey16(55))
    mixed = run_with(entry(IngestOptions(crop_bottom=12), IngestOptions(crop_bottom=20)))
    with pytest.raises(UserError, match=r"--crop-bottom 12 and --crop-bottom 20"):
        predict(mixed, [file], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = predict(mixed, [file], out=tmp_path / "out", crop_bottom=12)
    assert report.options == IngestOptions(crop_bottom=12)
    assert report.warnings == []
    # Recorded options are used if only a part is recorded, with a warning.
    part = run_with(entry(None, NARROW))
    report = predict(part, [file], out=tmp_path / "part")
    assert report.options == NARROW
    assert "--percentiles 5,60" in report.warnings[0]
    # Unlabelled images that differ do not stop anything.
    other = run_with(entry(NARROW, unlabelled=(NARROW, DEFAULTS)))
    report = predict(other, [file], out=tmp_path / "other")
    assert report.options == NARROW
    (warning,) = report.warnings
    for part in (other, "--percentiles 5,60", "--percentiles 0.5,99.5"):
        assert str(part) in warning


@pytest.mark.parametrize(
    "damaged",
    [
        None,
        [],
        "x",
        3,
        {},
        {"annotated": []},
        {"annotated": {}, "unlabelled": []},
        {"annotated": [3], "unlabelled": []},
        {"annotated": [], "unlabelled": ["keep"]},
        {"annotated": [{"percentiles": [0, 1e999], "colour": "keep", "crop_bottom": 0}], "unlabelled": []},
        {"annotated": [], "unlabelled": [], "more": []},
    ],
    ids=str,
)
def test_a_damaged_record_is_refused_unless_all_options_are_given(
    run_with: Copy, tmp_path: Path, damaged: Any
) -> None:
    run = run_with(damaged)
    file = save(tmp_path / "a.png", grey8(56))
    with pytest.raises(UserError, match=r"run\.json: 'ingest_options'"):
        predict(run, [file], out=tmp_path / "out")
    whole = predict(run, [file], out=tmp_path / "out", percentiles=(1, 99), luma=False, crop_bottom=0)
    assert whole.options == IngestOptions((1, 99))


def test_a_warning_names_archive_images_with_other_options(
    run_with: Copy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In `predict` and `evaluate`, once for each option; not if options are unknown or do not differ."""
    out = tmp_path / "a.h5"
    folder = tmp_path / "alloy"
    for name in ("img", "gt"):
        (folder / name).mkdir(parents=True)
    for number in range(2):
        save(folder / "img" / f"{number}.tif", grey16(number))
        save(folder / "gt" / f"{number}.png", micrograph(number, 96, 160)[1])
    splits = {"classes": CLASSES, "ignore_classes": [SCRATCH], "test": ["0.tif", "1.tif"]}
    (folder / "splits.json").write_text(json.dumps(splits))
    packed([folder], out, NARROW)
    for record, said in (
        (entry(DEFAULTS), "--percentiles 0.5,99.5"),
        (entry(DEFAULTS, IngestOptions((1.0, 99.0))), "--percentiles 0.5,99.5 and --percentiles 1,99"),
        (entry(NARROW, DEFAULTS), ""),
        (entry(IngestOptions(NARROW.percentiles, luma=True)), ""),
        (entry(None), ""),
        ("damaged", ""),
    ):
        run = run_with(record)
        ids = ["predict", str(run), "alloy/0", "alloy/1", "--archive", str(out), "--out", str(run / "out")]
        for command in (ids, ["evaluate", str(run), "--archive", str(out)]):
            assert main(command) == EXIT_DONE
            lines = capsys.readouterr().err.splitlines()
            assert len(lines) == bool(said), record
            for part in ("warning: alloy/0 and 1 more", "--percentiles 5,60", str(run), said):
                assert not said or part in lines[0]


def test_the_flags(
    run_with: Copy, archive_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_with(entry(None))
    file = save(tmp_path / "a.tif", with_bar(grey16(57)))
    command = ["predict", str(run), str(file), "--out", str(tmp_path / "out")]
    flags = ["--percentiles", "5,60", "--colour", "luma", "--crop-bottom", "auto"]
    assert main([*command, *flags]) == EXIT_DONE
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [str(tmp_path / "out")]
    (line,) = captured.err.splitlines()
    assert f"{BAR} rows" in line
    assert str(file) in line
    labels = read_labels(tmp_path / "out/a.png")
    expected = only_labels(
        predict(run, [file], out=tmp_path / "api", percentiles=(5, 60), luma=True, crop_bottom=AUTO_CROP)
    )
    np.testing.assert_array_equal(labels, expected)
    assert main([*command[:-1], str(tmp_path / "json"), *flags, "--json"]) == EXIT_DONE
    content = json.loads(capsys.readouterr().out)
    assert content["options"] == {"percentiles": [5.0, 60.0], "colour": "luma", "crop_bottom": "auto"}
    assert content["written"][0]["cropped"] == BAR
    assert main([*command[:-1], str(tmp_path / "said")]) == EXIT_DONE
    said = capsys.readouterr().err.splitlines()
    assert [line.startswith(f"warning: {run}") for line in said] == [True] * 2
    wrong = {
        "--percentiles is 90,10": ["--percentiles", "90,10"],
        "--percentiles is '5'": ["--percentiles", "5"],
        "--colour is 'sepia'": ["--colour", "sepia"],
        "--crop-bottom is '-3'": ["--crop-bottom", "-3"],
        "--crop-bottom is '²'": ["--crop-bottom", "²"],
        f"--crop-bottom is '{'9' * 5000}'": ["--crop-bottom", "9" * 5000],
        "--archive": ["--percentiles", "1,99", "--archive", str(archive_file)],
    }
    for message, arguments in wrong.items():
        assert main([*command, *arguments]) == EXIT_INPUT
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
