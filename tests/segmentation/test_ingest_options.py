"""A file is segmented as the image in the archive is, whatever options the archive was built with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
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
ABSENT = object()


def grey8(seed: int) -> np.ndarray:
    return micrograph(seed, 96, 160)[0]


def grey16(seed: int) -> np.ndarray:
    """Deep, with a phase of few but very bright pixels, so that percentiles matter."""
    image = grey8(seed).astype(np.uint16) * 40 + 500
    image[::7, ::5] = 65000
    return image


def colour16(seed: int) -> np.ndarray:
    """Channels on very different scales, so that it matters whether luma is taken before or after scaling."""
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


@pytest.fixture
def run_with(trained: RunFolder, tmp_path: Path) -> Copy:
    """Copies of a trained run whose record says how its annotated images were packed."""
    made = 0

    def copy(packing: Any) -> Path:
        nonlocal made
        made += 1
        target = tmp_path / f"run{made}"
        shutil.copytree(trained.path, target, ignore=shutil.ignore_patterns("checkpoints", "predictions"))
        record = json.loads((target / "run.json").read_text())
        record.pop("packing")
        if packing is not ABSENT:
            record["packing"] = packing
        (target / "run.json").write_text(json.dumps(record))
        return target

    return copy


def recorded(*annotated: IngestOptions | None, unlabelled: tuple[IngestOptions, ...] = ()) -> dict[str, Any]:
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
    run = run_with(recorded(options))
    by_id = only_labels(predict(run, ["x/a"], archive=archive, out=tmp_path / "ids"))
    report = predict(run, [file], out=tmp_path / "files")
    labels = only_labels(report)
    assert (report.options, report.notices) == (options, [])
    height = Archive(archive).records[0].height
    cut = pixels.shape[0] - height
    assert cut == report.written[0].cropped
    assert cut == (BAR if options.crop_bottom == AUTO_CROP else options.crop_bottom)
    assert labels.shape == pixels.shape[:2]
    np.testing.assert_array_equal(labels[:height], by_id)
    assert (labels[height:] == 255).all()
    assert not (by_id == 255).any()
    # The same by flags, against what an older run would do.
    given = dict(vars(options))
    by_flags = only_labels(predict(run_with(ABSENT), [file], out=tmp_path / "flags", **given))
    np.testing.assert_array_equal(by_flags, labels)
    plain = only_labels(predict(run_with(ABSENT), [file], out=tmp_path / "plain"))
    assert not np.array_equal(plain, labels)


def test_the_bar_is_in_the_overlay_without_colour(run_with: Copy, tmp_path: Path) -> None:
    image = with_bar(grey8(50))
    file = save(tmp_path / "a.png", image)
    run = run_with(recorded(IngestOptions(crop_bottom=AUTO_CROP)))
    report = predict(run, [file], out=tmp_path / "out")
    overlay = np.asarray(Image.open(report.written[0].overlay))
    assert overlay.shape == (*image.shape, 3)
    np.testing.assert_array_equal(overlay[-BAR:], np.repeat(image[-BAR:, :, None], 3, axis=2))
    assert (overlay[:-BAR] != image[:-BAR, :, None]).any()
    assert report.bars == [(str(file), BAR)]
    # A whole image has no such rows.
    assert predict(run, [save(tmp_path / "b.png", grey8(50))], out=tmp_path / "out").bars == []


def test_pages_are_cropped_each(run_with: Copy, tmp_path: Path) -> None:
    stack = np.stack([micrograph(seed, 24, 32)[0] for seed in range(12)])
    stack[:, -5:] = 255 - stack[:, -5:]
    run = run_with(recorded(IngestOptions(crop_bottom=5)))
    report = predict(run, [save(tmp_path / "stack.tif", stack)], out=tmp_path / "out")
    assert [image.cropped for image in report.written] == [5] * 12
    for number in (1, 2, 10):
        alone = save(tmp_path / f"alone{number}.png", stack[number, :-5])
        expected = only_labels(predict(run_with(ABSENT), [alone], out=tmp_path / "out"))
        labels = read_labels(tmp_path / f"out/stack#{number}.png")
        np.testing.assert_array_equal(labels[:-5], expected)


def test_a_page_with_too_few_rows_is_skipped(run_with: Copy, tmp_path: Path) -> None:
    files = [save(tmp_path / f"{rows}.png", grey8(51)[:rows]) for rows in (9, 10)]
    report = predict(run_with(ABSENT), files, out=tmp_path / "out", crop_bottom=9)
    assert [(Path(name).name, reason) for name, reason in report.skipped] == [
        ("9.png", "it has 9 rows, no more than the 9 to be cropped")
    ]
    assert report.written[0].cropped == 9


def test_fine_tuning_records_how_its_images_were_packed(tmp_path: Path) -> None:
    """The whole way: images, archive, run, prediction; with unlabelled images of another build."""
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
    assert RunFolder.load(run.path).record["packing"] == expected
    by_id = only_labels(predict(run.path, ["alloy/2"], archive=archive, out=tmp_path / "ids"))
    report = predict(run.path, [alloy / "img/2.tif"], out=tmp_path / "files")
    np.testing.assert_array_equal(only_labels(report)[:-6], by_id)
    assert [notice.split(" like ")[0] for notice in report.notices] == [
        "files are packed with --percentiles 2,80",
        "files are packed with --crop-bottom 6",
    ]


def test_an_archive_from_before_the_record(archive_file: Path, tmp_path: Path) -> None:
    old = Path(shutil.copy(archive_file, tmp_path / "old.h5"))
    with h5py.File(old, "r+") as file:
        del file["images/ingest"]
    run = finetune(settings(old, tmp_path / "run", schedule={"steps": 1}))
    assert RunFolder.load(run.path).record["packing"] == {"annotated": [None], "unlabelled": []}
    report = predict(run.path, [save(tmp_path / "a.tif", grey16(52))], out=tmp_path / "out")
    assert len(report.notices) == 1
    assert report.options == DEFAULTS


def test_defaults_are_named_only_where_others_could_matter(run_with: Copy, tmp_path: Path) -> None:
    run = run_with(ABSENT)

    def notices(pixels: np.ndarray, name: str, **given: Any) -> list[str]:
        return predict(run, [save(tmp_path / name, pixels)], out=tmp_path / "out", **given).notices

    assert notices(grey8(53), "grey.png") == []
    assert notices(np.repeat(grey8(53)[..., None], 3, axis=2), "grey-as-rgb.png") == []
    (deep,) = notices(grey16(53), "deep.tif")
    assert deep == (
        f"{run} does not record how its images were packed: --percentiles 0.5,99.5 was taken for "
        f"{tmp_path / 'deep.tif'}; give --percentiles if 'archive build' had another"
    )
    assert notices(grey16(53), "deep.tif", percentiles=(0.5, 99.5)) == []
    (colour,) = notices(colour8(53), "colour.png")
    assert "--colour keep was taken" in colour
    (bar,) = notices(with_bar(grey8(53)), "bar.png")
    assert "--crop-bottom 0 was taken" in bar
    assert len(notices(with_bar(grey16(54)), "all.tif")) == 2
    given = {"percentiles": (0.5, 99.5), "crop_bottom": 0}
    assert notices(with_bar(grey16(54)), "all.tif", **given) == []
    files = [save(tmp_path / f"{place}.tif", grey16(place)) for place in range(3)]
    (several,) = predict(run, files, out=tmp_path / "out").notices
    assert f"was taken for {files[0]} and 2 more;" in several


def test_images_that_were_packed_in_several_ways(run_with: Copy, tmp_path: Path) -> None:
    file = save(tmp_path / "a.tif", grey16(55))
    mixed = run_with(recorded(IngestOptions(crop_bottom=12), IngestOptions(crop_bottom=20)))
    with pytest.raises(UserError, match=r"\(--crop-bottom 12 and --crop-bottom 20\); say with --crop-bottom"):
        predict(mixed, [file], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = predict(mixed, [file], out=tmp_path / "out", crop_bottom=12)
    assert report.options == IngestOptions(crop_bottom=12)
    assert report.notices == []
    # Where a part is not recorded, what is recorded is taken, and said.
    part = run_with(recorded(None, NARROW))
    report = predict(part, [file], out=tmp_path / "part")
    assert report.options == NARROW
    assert "--percentiles 5,60 was taken" in report.notices[0]
    # Unlabelled images that differ do not stop anything.
    other = run_with(recorded(NARROW, unlabelled=(NARROW, DEFAULTS)))
    report = predict(other, [file], out=tmp_path / "other")
    assert report.options == NARROW
    assert report.notices == [
        f"files are packed with --percentiles 5,60 like the annotated images of {other}, which also learnt from "
        "images packed with --percentiles 0.5,99.5"
    ]


@pytest.mark.parametrize(
    "packing",
    [
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
def test_a_damaged_record_is_one_sentence(run_with: Copy, tmp_path: Path, packing: Any) -> None:
    run = run_with(packing)
    file = save(tmp_path / "a.png", grey8(56))
    with pytest.raises(
        UserError, match=r"run\.json: 'packing' is damaged .*give --percentiles, --colour and"
    ):
        predict(run, [file], out=tmp_path / "out")
    whole = predict(run, [file], out=tmp_path / "out", percentiles=(1, 99), luma=False, crop_bottom=0)
    assert whole.options == IngestOptions((1, 99))


def test_images_of_an_archive_that_were_packed_otherwise_are_told_of(
    run_with: Copy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By `predict` and `evaluate`, once an option; not where nothing is known, or nothing differs."""
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
        (recorded(DEFAULTS), "--percentiles 0.5,99.5"),
        (recorded(DEFAULTS, IngestOptions((1.0, 99.0))), "--percentiles 0.5,99.5 and --percentiles 1,99"),
        (recorded(NARROW, DEFAULTS), ""),
        (recorded(IngestOptions(NARROW.percentiles, luma=True)), ""),
        (recorded(None), ""),
        (ABSENT, ""),
        ("damaged", ""),
    ):
        run = run_with(record)
        expected = [
            "notice: alloy/0 and 1 more: packed with --percentiles 5,60, but the annotated images of "
            f"{run} with {said}; what it makes of them may be worse"
        ]
        ids = ["predict", str(run), "alloy/0", "alloy/1", "--archive", str(out), "--out", str(run / "out")]
        for command in (ids, ["evaluate", str(run), "--archive", str(out)]):
            assert main(command) == EXIT_DONE
            assert capsys.readouterr().err.splitlines() == (expected if said else []), record


def test_the_flags(
    run_with: Copy, archive_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_with(ABSENT)
    file = save(tmp_path / "a.tif", with_bar(grey16(57)))
    command = ["predict", str(run), str(file), "--out", str(tmp_path / "out")]
    flags = ["--percentiles", "5,60", "--colour", "luma", "--crop-bottom", "auto"]
    assert main([*command, *flags]) == EXIT_DONE
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [str(tmp_path / "out")]
    assert captured.err.splitlines() == [f"left out {BAR} rows of information bar of {file}"]
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
    assert [line.split(" does not record")[0] for line in said] == [f"notice: {run}"] * 2
    wrong = {
        "--percentiles is 90,10": ["--percentiles", "90,10"],
        "--percentiles is '5'": ["--percentiles", "5"],
        "--colour is 'sepia'": ["--colour", "sepia"],
        "--crop-bottom is '-3'": ["--crop-bottom", "-3"],
        "--crop-bottom is '²'": ["--crop-bottom", "²"],
        f"--crop-bottom is '{'9' * 5000}'": ["--crop-bottom", "9" * 5000],
        "leave out --percentiles": ["--percentiles", "1,99", "--archive", str(archive_file)],
    }
    for message, arguments in wrong.items():
        assert main([*command, *arguments]) == EXIT_INPUT
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
