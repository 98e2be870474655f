"""Measuring the predictions of a run and the masks of an archive; files, page and command."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from pscl_hpc.archive import Archive, Collection, ShardWriter
from pscl_hpc.cli.main import main
from pscl_hpc.errors import UserError
from pscl_hpc.metallography.grains import number_by_area
from pscl_hpc.metallography.measure import Wanted, measure, measure_masks
from pscl_hpc.metallography.record import MEASUREMENTS_FILE, read_measurements
from pscl_hpc.metallography.summary import ABSOLUTE_ERROR, ERROR, GRAINS
from pscl_hpc.report import write_report
from pscl_hpc.report.measure_page import least_sure, scale_bar
from pscl_hpc.runs import RunFolder
from pscl_hpc.segmentation.pictures import read_labels

from .material import UM_PER_PIXEL, micrograph


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="session")
def measured(trained: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("measured")
    measure(trained.path, out=out, splits=["test"])
    return out


def test_predictions_are_measured_beside_the_masks(
    trained: RunFolder, archive_file: Path, measured: Path
) -> None:
    record = read_measurements(measured)
    assert [image.name for image in record.images] == ["alloy/test0", "alloy/test1"]
    assert record.unit == "um"
    assert record.images[0].um_per_pixel == UM_PER_PIXEL
    labels = read_labels(measured / record.images[0].files["labels"])
    carbide = record.images[0].phases["carbide"]
    assert carbide.fraction == pytest.approx((labels == 1).mean())
    mask = Archive(archive_file).read_mask(Archive(archive_file).find("alloy/test0").index)
    assert carbide.fraction_in_mask == pytest.approx((mask == 1).mean())
    mean = record.find("carbide", "fraction")
    assert mean is not None
    assert mean.images == 2
    assert mean.low is not None
    assert record.correction is not None
    assert record.correction.images == 2
    matrix = np.array(record.correction.matrix)
    assert matrix.sum(axis=0) == pytest.approx([1, 1])
    fraction = carbide.fraction or 0.0
    assert carbide.corrected_fraction == pytest.approx((matrix @ [1 - fraction, fraction])[1])


def test_the_tables_say_the_same_as_the_record(measured: Path) -> None:
    record = read_measurements(measured)
    results = {(row["phase"], row["quantity"]): row for row in rows(measured / "results.csv")}
    found = record.find("carbide", "mean diameter")
    assert found is not None
    assert float(results["carbide", "mean diameter"]["value"]) == found.value
    assert results["carbide", "mean diameter"]["unit"] == "um"
    images = rows(measured / "images.csv")
    assert [row["image"] for row in images if row["phase"] == "carbide"] == ["alloy/test0", "alloy/test1"]
    particles = rows(measured / "particles.csv")
    inside = record.find("carbide", "particles inside")
    assert inside is not None
    assert len(particles) == inside.value
    for quantity in ("particles inside", "diameter D50", "mean diameter"):
        assert results["carbide", quantity]["images"] == "2"
    area, diameter = float(particles[0]["area"]), float(particles[0]["diameter"])
    assert area == pytest.approx(np.pi * diameter**2 / 4, rel=1e-4)


def test_files_are_measured_in_pixels_or_with_a_given_scale(trained: RunFolder, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(micrograph(20)[0]).save(folder / "a.png")
    tifffile.imwrite(
        folder / "b.tif", micrograph(21)[0], imagej=True, resolution=(4, 4), metadata={"unit": "um"}
    )
    plain = measure(trained.path, [folder], out=tmp_path / "plain", validation="none").record
    scales = {Path(image.name).name: image.um_per_pixel for image in plain.images}
    assert scales == {"a.png": None, "b.tif": 0.25}
    assert plain.unit == "px"
    assert plain.correction is None
    given = measure(
        trained.path, [folder], out=tmp_path / "given", wanted=Wanted(um_per_pixel=2), validation="none"
    ).record
    in_pixels, in_um = (one.find("carbide", "mean diameter") for one in (plain, given))
    assert in_pixels is not None
    assert in_um is not None
    assert in_pixels.value is not None
    assert in_um.value == pytest.approx(2 * in_pixels.value)


def test_a_second_call_keeps_what_is_segmented(trained: RunFolder, measured: Path) -> None:
    record = read_measurements(measured)
    kept = measured / record.images[0].files["labels"]
    lost = measured / record.images[1].files["overlay"]
    before, content = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    with (measured / "predictions/finished.jsonl").open("a") as file:
        file.write('{"key": "half a li')
    again = measure(trained.path, out=measured, splits=["test"]).record
    assert kept.stat().st_mtime_ns == before
    assert lost.read_bytes() == content
    assert again.images == record.images
    third = measure(trained.path, out=measured, splits=["test"], tta="rotations").record
    assert kept.stat().st_mtime_ns > before
    assert third.settings["test-time augmentation"] == "rotations"
    assert third.settings["shading correction"] == "no"
    assert third.settings["class weights"] == "as trained"
    fourth = measure(
        trained.path, out=measured, splits=["test"], correct_shading=True, unweighted=True
    ).record
    assert fourth.settings["shading correction"] == "yes"
    assert fourth.settings["class weights"] == "taken out"
    measure(trained.path, out=measured, splits=["test"])


def test_masks_are_measured_directly(archive_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--dataset"):
        measure_masks(archive_file, out=tmp_path)
    record = measure_masks(archive_file, out=tmp_path, dataset="alloy", splits=["test"]).record
    truth = [(micrograph(seed)[1] == 1).mean() for seed in (3, 4)]
    found = record.find("carbide", "fraction")
    assert found is not None
    assert found.value == pytest.approx(np.mean(truth))
    assert record.masks
    assert not record.images[0].files
    text = write_report([tmp_path]).path.read_text(encoding="utf-8")
    assert "Phases in 2 masks" in text
    assert "Annotate next" not in text


def test_grain_size_in_the_tables_and_on_the_page(tmp_path: Path) -> None:
    mask = np.zeros((100, 80), np.uint8)
    mask[19:-1:20] = mask[:, 19:-1:20] = 1
    with ShardWriter(tmp_path / "grains.h5", [Collection("g", ("grain", "edge"))]) as writer:
        for name in ("a", "b"):
            writer.add(mask * 200, mask=mask, id=f"g/{name}", dataset="g", um_per_pixel=0.5)
    wanted = Wanted(boundary="edge")
    record = measure_masks(tmp_path / "grains.h5", out=tmp_path / "out", wanted=wanted).record
    found = record.find(GRAINS, "ASTM grain size G (planimetric)")
    assert found is not None
    # 12 grains by the planimetric procedure on 100 x 80 pixels of 0.5 um.
    assert found.value == pytest.approx(number_by_area(12 / (8000 * 0.25) * 1e6))
    (row,) = (
        row for row in rows(tmp_path / "out/images.csv") if row["phase"] == GRAINS and row["image"] == "g/a"
    )
    assert float(row["grain_size_planimetric"]) == found.value
    assert row["particles_inside"] == "6"
    text = write_report([tmp_path / "out"]).path.read_text(encoding="utf-8")
    assert f"ASTM grain size G (planimetric): {found.value:.3g}" in text


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"splits": ["tset"]}, "tset"),
        ({"validation": "vla"}, "vla"),
        ({"images": ["a.png"], "splits": ["test"]}, "--split"),
        ({"wanted": Wanted(phases=("carbid",))}, "carbid"),
    ],
)
def test_wrong_names(trained: RunFolder, tmp_path: Path, arguments: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        measure(trained.path, out=tmp_path, **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / MEASUREMENTS_FILE).exists()


def test_the_page_has_scale_bars_numbers_and_the_least_sure_images(measured: Path) -> None:
    record = read_measurements(measured)
    text = write_report([measured]).path.read_text(encoding="utf-8")
    place = [text.index(part) for part in ('id="pictures"', 'id="numbers"', 'id="next"', 'id="settings"')]
    assert place == sorted(place)
    # 64 pixels of 0.25 um: the longest bar of at most 30% is 2 um.
    assert "2 \N{MICRO SIGN}m</span>" in text
    assert "width:12.500%" in text
    found = record.find("carbide", "corrected fraction")
    assert found is not None
    assert found.value is not None
    assert f"{100 * found.value:.1f} %" in text
    confidences = {image.name: image.mean_confidence or 0 for image in record.images}
    first = min(confidences, key=lambda name: confidences[name])
    after = text[text.index('id="next"') :]
    assert after.index(first) == min(after.index(name) for name in confidences)


def test_images_without_a_mask_are_proposed_first(measured: Path) -> None:
    image = read_measurements(measured).images[0]
    bare = {name: phase.model_copy(update={"fraction_in_mask": None}) for name, phase in image.phases.items()}
    images = [
        image.model_copy(update={"name": "masked", "mean_confidence": 0.5}),
        image.model_copy(update={"name": "bare", "mean_confidence": 0.9, "phases": bare}),
        image.model_copy(update={"name": "trained on", "mean_confidence": 0.4, "annotated": True}),
        image.model_copy(update={"name": "barer", "mean_confidence": 0.8, "phases": bare}),
    ]
    assert [one.name for one in least_sure(images)] == ["barer", "bare", "masked"]


@pytest.mark.parametrize(
    ("width", "um_per_pixel", "label", "percent"),
    [
        (100, 1.0, "20 \N{MICRO SIGN}m", 20),
        (1000, 0.0001, "20 nm", 20),
        (1000, 10.0, "2 mm", 20),
        (333, 0.05, "2 \N{MICRO SIGN}m", 12.01),
    ],
)
def test_a_scale_bar_is_a_round_length_that_fits(
    width: int, um_per_pixel: float, label: str, percent: float
) -> None:
    bar = scale_bar(width, um_per_pixel)
    assert bar is not None
    assert bar.label == label
    assert bar.percent == pytest.approx(percent, abs=0.01)
    assert scale_bar(width, None) is None


def test_the_command(trained: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["measure", str(trained.path), "--split", "val", "--out", str(out), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == json.loads((out / MEASUREMENTS_FILE).read_text())
    assert (out / "report.html").is_file()
    archive = trained.decided_config.data.archive
    for wrong, named in ((["--scribbles"], "--masks"), (["--tta", "none"], "--tta"), ([], "--out")):
        source = str(trained.path) if wrong == ["--scribbles"] else archive
        assert main(["measure", source, *wrong]) == 2
        assert named in capsys.readouterr().err
    assert main(["measure", archive, "--dataset", "alloy", "--out", str(out)]) == 0


@pytest.mark.parametrize("white", [1, 255])
def test_files_are_compared_with_masks_in_a_folder(trained: RunFolder, tmp_path: Path, white: int) -> None:
    for number in range(6, 9):
        image, mask = micrograph(number)
        for folder, name, pixels in (
            ("sem", f"Gefüge {number}.tif", image),
            ("painted", f"Gefüge {number}.png", mask * white),
        ):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / name)
    (tmp_path / "painted/Gefüge 8.png").unlink()
    values = {0: "matrix", 255: "carbide"} if white == 255 else {}
    call = (trained.path, [tmp_path / "sem"])
    done = measure(
        *call, out=tmp_path / "out", masks=tmp_path / "painted", mask_values=values, validation="none"
    )
    errors = []
    for number, image in zip(range(6, 9), done.record.images, strict=True):
        found, mask = image.phases["carbide"], micrograph(number)[1]
        assert found.fraction_in_mask == (None if number == 8 else pytest.approx(mask.mean()))
        if number < 8:
            errors.append(found.fraction - mask.mean())
    mean, absolute = (done.record.find("carbide", name) for name in (ERROR, ABSOLUTE_ERROR))
    assert mean is not None
    assert absolute is not None
    assert (mean.value, mean.images) == (pytest.approx(np.mean(errors)), 2)
    assert absolute.value == pytest.approx(np.mean(np.abs(errors)))
    assert any("2 of 3 images have a mask" in text for text in done.record.warnings)
    lines = done.record.lines()
    assert any("percentage points" in line for line in lines)
    assert any("carbide: fraction in the masks of 2 images" in line for line in lines)
    assert any("carbide: fraction predicted in the same pixels" in line for line in lines)
    page = write_report([done.folder]).path.read_text(encoding="utf-8")
    assert "<b>Micrograph</b>" in page
    assert "On the 2 images with a mask" in page
    if white == 255:
        with pytest.raises(UserError, match="no image could be compared"):
            measure(*call, out=tmp_path / "out", masks=tmp_path / "painted")


def test_a_class_that_is_predicted_nowhere_is_told(trained: RunFolder, tmp_path: Path) -> None:
    Image.fromarray(np.full((64, 64), 80, np.uint8) + (np.arange(64) % 5).astype(np.uint8)).save(
        tmp_path / "bare.png"
    )
    record = measure(trained.path, [tmp_path / "bare.png"], out=tmp_path / "out").record
    assert record.images[0].phases["carbide"].fraction == 0
    assert [text for text in record.warnings if text.startswith("carbide: predicted in no image")]
    found = measure(trained.path, out=tmp_path / "all").record
    assert not [text for text in found.warnings if "predicted in no image" in text]


def test_masks_that_fit_no_image_or_not_all(trained: RunFolder, tmp_path: Path) -> None:
    for number in (6, 7):
        (tmp_path / "sem").mkdir(exist_ok=True)
        Image.fromarray(micrograph(number)[0]).save(tmp_path / f"sem/{number}.png")
    masks = tmp_path / "painted"
    call = (trained.path, [tmp_path / "sem"])
    for make, named in ((lambda: None, "painted"), (masks.mkdir, "0007_mask")):
        make()
        with pytest.raises(UserError, match=named):
            measure(*call, out=tmp_path / "out", masks=masks)
    Image.fromarray(micrograph(6)[1]).save(masks / "6.png")
    Image.fromarray(micrograph(7)[1][1:]).save(masks / "7.png")
    record = measure(*call, out=tmp_path / "out", masks=masks).record
    assert [image.phases["carbide"].fraction_in_mask is None for image in record.images] == [False, True]
    [(source, reason)] = record.skipped
    assert source.endswith("7.png")
    assert "63 x 64" in reason
    with pytest.raises(UserError, match="--masks"):
        measure(trained.path, out=tmp_path / "out", masks=masks)


def test_a_damaged_record_is_named(measured: Path, tmp_path: Path) -> None:
    (tmp_path / MEASUREMENTS_FILE).write_text('{"source": 3}')
    with pytest.raises(UserError, match=MEASUREMENTS_FILE):
        write_report([tmp_path])
