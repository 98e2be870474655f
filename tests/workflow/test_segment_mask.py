"""The mask, its classes and the image that it belongs to; the image that is suggested where there is none."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from pscl_hpc.archive import Archive
from pscl_hpc.archive.options import AUTO_CROP
from pscl_hpc.cli.main import main
from pscl_hpc.errors import EXIT_INPUT, UserError
from pscl_hpc.metallography.record import read_measurements
from pscl_hpc.workflow import segment, suggest_annotation
from pscl_hpc.workflow.masks import numbered_classes
from pscl_hpc.workflow.segment import prepare
from tests.archive.archives import texture, with_bar

from .material import SMALL, micrograph, request_of, words_of


def test_classes_without_names_are_numbered(folder: Path) -> None:
    said: list[str] = []
    inputs = prepare(request_of(folder), folder / "out", say=said.append).inputs
    assert inputs.classes == ("class 0", "class 1")
    assert any("--classes" in text for text in said)


def test_several_masks(folder: Path) -> None:
    """The second shows a class that the first lacks, and has the name of the first in another folder."""
    (folder / "more").mkdir()
    second = micrograph(2)[1] * 2
    Image.fromarray(second).save(folder / "more/1_mask.png")
    masks = ["--mask", str(folder / "painted/1_mask.png"), "--image", "1"]
    masks += ["--mask", str(folder / "more/1_mask.png"), "--image", "2"]
    assert main(["segment", str(folder / "sem"), *masks, "--out", str(folder / "out"), *SMALL]) == 0
    record = read_measurements(folder / "out/measurements")
    assert record.references == ("sem/1", "sem/2")
    with Archive(folder / "out/archive.h5") as archive:
        assert archive.collections["sem"].classes == ("class 0", "class 1", "class 2")
        for name, mask in (("sem/1", micrograph(1)[1]), ("sem/2", second)):
            np.testing.assert_array_equal(archive.read_mask(archive.find(name).index), mask)
    for number, command in enumerate(record.commands[:2]):
        words = shlex.split(command)
        assert words[1] == ("archive", "finetune")[number]
        words[-1] = str(folder / "again.h5") if number == 0 else "schedule.steps=2"
        if number == 1:
            words = [f"run={folder / 'run'}" if word.startswith("run=") else word for word in words]
        assert main(words[1:]) == 0
    with Archive(folder / "out/archive.h5") as first, Archive(folder / "again.h5") as second_archive:
        assert first.fingerprint == second_archive.fingerprint


def test_masks_that_do_not_go_together(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = folder / "painted/1_mask.png", folder / "painted/1.png"
    shutil.copy(one, other)
    (folder / "sem/other").mkdir()
    Image.fromarray(micrograph(7)[0]).save(folder / "sem/other/7.png")
    for masks, images in (
        ((one, one), ()),
        ((one, other), ()),
        ((one, other), ("1",)),
        ((one, folder / "painted/3.png"), ()),
    ):
        words = [text for mask in masks for text in ("--mask", str(mask))]
        words += [text for image in images for text in ("--image", image)]
        assert main(["segment", str(folder / "sem"), *words, "--out", str(folder / "out")]) == EXIT_INPUT
        error = capsys.readouterr().err
        assert str(masks[1]) in error or "--image" in error


def test_a_mask_beside_its_image(folder: Path) -> None:
    """The folder tells the mask by its name, and has no class names."""
    mask = folder / "sem/1_mask.png"
    shutil.copy(folder / "painted/1_mask.png", mask)
    found = prepare(request_of(folder, masks=(str(mask),)), folder / "out").inputs
    assert found.references == ("sem/1",)
    assert found.classes == ("class 0", "class 1")
    assert len(Archive(found.archive)) == 3
    named = prepare(
        request_of(folder, masks=(str(mask),), classes=("matrix", "carbide")), folder / "named"
    ).inputs
    assert named.classes == ("matrix", "carbide")


def test_a_mask_of_no_image_and_a_mask_among_the_images(folder: Path) -> None:
    other = folder / "painted/9.png"
    shutil.copy(folder / "painted/1_mask.png", other)
    (folder / "sem/other").mkdir()
    Image.fromarray(micrograph(7)[0]).save(folder / "sem/other/1.png")
    for name in ("1.png", "1"):
        with pytest.raises(UserError, match=rf"--image {name}: .*other/1\.png"):
            prepare(request_of(folder, images=(name,)), folder / "two")
    found = prepare(request_of(folder, images=("other/1.png",)), folder / "two").inputs
    assert found.references == ("sem/other__1",)
    shutil.rmtree(folder / "sem/other")
    with pytest.raises(UserError, match="--image"):
        segment(request_of(folder, masks=(str(other),)), folder / "a")
    for name in ("1", "sem/1", "1.png"):
        assert prepare(
            request_of(folder, masks=(str(other),), images=(name,)), folder / "a"
        ).inputs.references == ("sem/1",)
    record = segment(request_of(folder, masks=(str(other),), images=("1.png",)), folder / "b").measured.record
    assert record.references == ("sem/1",)
    inside = folder / "sem/painted.png"
    shutil.copy(other, inside)
    with pytest.raises(UserError, match="among the images"):
        segment(request_of(folder, masks=(str(inside),)), folder / "c")


def test_a_mask_of_shapes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = {"label": "carbide", "points": [[5, 5], [30, 5], [30, 30]], "shape_type": "polygon"}
    mask = folder / "painted/2.json"
    mask.write_text(
        json.dumps(
            {"version": "5", "shapes": [shape], "imagePath": "2.png", "imageHeight": 48, "imageWidth": 56}
        )
    )
    with pytest.raises(UserError, match="--classes BACKGROUND,carbide"):
        prepare(request_of(folder, masks=(str(mask),)), folder / "out")
    inputs = prepare(
        request_of(folder, masks=(str(mask),), classes=("matrix", "carbide")), folder / "out"
    ).inputs
    assert inputs.references == ("sem/2",)
    archive = Archive(inputs.archive)
    labels, counts = np.unique(archive.read_mask(archive.find("sem/2").index), return_counts=True)
    assert labels.tolist() == [0, 1]
    assert counts[1] == pytest.approx(25 * 25 / 2, rel=0.1)


def test_a_file_of_shapes_names_its_image(folder: Path) -> None:
    category, corners = {"id": 3, "name": "carbide"}, [5, 5, 30, 5, 30, 30]
    tree = {
        "images": [{"id": 7, "file_name": "sem/2.png", "height": 48, "width": 56}],
        "categories": [category],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "segmentation": [corners]}],
    }
    mask = folder / "instances_default.json"
    mask.write_text(json.dumps(tree))
    request = request_of(folder, masks=(str(mask),), classes=("matrix", "carbide"))
    assert prepare(request, folder / "out").inputs.references == ("sem/2",)
    tree["images"].append({"id": 8, "file_name": "sem/0.png", "height": 48, "width": 56})
    tree["annotations"].append({"id": 2, "image_id": 8, "category_id": 3, "segmentation": [corners]})
    tree["images"].append({"id": 9, "file_name": "sem/1.png", "height": 48, "width": 56})  # without a shape
    mask.write_text(json.dumps(tree))
    both = prepare(request, folder / "both").inputs
    assert both.references == ("sem/0", "sem/2")
    with Archive(both.archive) as archive:
        assert [record.has_mask for record in archive.records] == [True, False, True]
    request = request_of(folder, masks=(str(mask),), images=("sem/0",), classes=("matrix", "carbide"))
    assert prepare(request, folder / "one").inputs.references == ("sem/0",)
    with pytest.raises(UserError, match="folder"):
        prepare(request_of(folder, masks=(str(folder / "painted"),)), folder / "other")


def test_scribbles_and_the_options_of_images(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        image = micrograph(number)[0]
        pages = np.stack([image[::-1], image]).astype(np.uint16) * 100
        tifffile.imwrite(folder / f"sem/{number}.tif", pages, photometric="minisblack")
        (folder / f"sem/{number}.png").unlink()
    scribbled = (micrograph(1)[1] + 1) * (np.arange(56) % 3 == 0)
    Image.fromarray(scribbled.astype(np.uint8)).save(folder / "painted/1_mask.png")
    words = [*words_of(folder), "--scribbles", "--page", "1", "--range", "collection", *SMALL]
    assert main(words) == EXIT_INPUT
    assert "--classes" in capsys.readouterr().err
    assert main([*words, "--classes", "matrix,carbide"]) == 0
    with Archive(folder / "out/archive.h5") as archive:
        assert len({record.high for record in archive.records}) == 1
        mask = archive.read_mask(archive.find("sem/1").index)
        second = tifffile.imread(folder / "sem/1.tif")[1]
        np.testing.assert_array_equal(archive.read_image(archive.find("sem/1").index)[:, :, 0], second)
    np.testing.assert_array_equal(mask, np.where(scribbled > 0, scribbled - 1, 255))
    command = read_measurements(folder / "out/measurements").commands[0]
    assert all(flag in command for flag in ("--scribbles", "--page 1", "--range collection"))


def test_values_that_are_no_class_indices(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(np.array([[0, 127], [200, 0]], np.uint8)).save(path)
    with pytest.raises(UserError, match="--mask-values"):
        numbered_classes([path])
    Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).save(path)
    with pytest.raises(UserError, match="0=CLASS1,255=CLASS2"):
        numbered_classes([path])
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(path)
    with pytest.raises(UserError, match="only the value 0"):
        numbered_classes([path])
    Image.fromarray(np.array([[[0, 0, 0], [255, 0, 0]]], np.uint8)).save(path)
    with pytest.raises(UserError, match="#000000=CLASS1,#ff0000=CLASS2"):
        numbered_classes([path])
    indices = Image.fromarray(np.array([[0, 1], [2, 255]], np.uint8))
    indices.save(path)
    assert numbered_classes([path]) == ("class 0", "class 1", "class 2")
    indices.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200] + [9] * 759)  # as the template that is painted
    indices.save(path)
    assert numbered_classes([path]) == ("class 0", "class 1", "class 2")
    tifffile.imwrite(path.with_suffix(".tif"), np.array([[0, 1], [2, 1]], np.float32))
    assert numbered_classes([path.with_suffix(".tif")]) == ("class 0", "class 1", "class 2")
    tifffile.imwrite(path.with_suffix(".tif"), np.array([[False, True]]))
    assert numbered_classes([path.with_suffix(".tif")]) == ("class 0", "class 1")


def test_without_a_mask_and_with_one_afterwards(folder: Path) -> None:
    with pytest.raises(UserError, match="--mask"):
        segment(request_of(folder, masks=()), folder / "out")
    found = suggest_annotation(request_of(folder, masks=()), folder / "out")
    assert len(Archive(folder / "out/archive.h5")) == 3
    assert found.id in ("sem/0", "sem/1", "sem/2")
    assert found.reason.is_file()
    assert not any("--count" in warning for warning in found.warnings)
    with Image.open(found.template) as template, Image.open(found.image) as image:
        assert (template.mode, template.size, image.size) == ("P", (56, 48), (56, 48))
        assert np.array_equal(np.unique(np.asarray(template)), [255])
        painted = np.asarray(template).copy()
        painted[:, :20], painted[:, 20:30] = 0, 1
        changed = template.copy()
        changed.paste(Image.fromarray(painted))
    changed.save(found.template)
    again = suggest_annotation(request_of(folder, masks=()), folder / "out")
    with Image.open(again.template) as template:
        assert np.array_equal(np.asarray(template), painted)
    request = request_of(folder, masks=(str(found.template),), images=(found.id,), classes=("a", "b"))
    inputs = prepare(request, folder / "out").inputs
    assert inputs.references == (found.id,)
    archive = Archive(folder / "out/archive.h5")
    assert np.array_equal(archive.read_mask(archive.find(found.id).index), painted)
    assert prepare(request_of(folder), folder / "out").inputs.references == ("sem/1",)


def test_what_the_suggestion_could_not_pack_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "sem/damaged.tif").write_bytes(b"II*\0")
    assert main(["segment", str(folder / "sem"), "--out", str(folder / "an out")]) == 1
    shown = capsys.readouterr()
    assert "damaged.tif" in shown.err
    command = shlex.split(next(line for line in shown.out.splitlines() if line.startswith("then: "))[6:])
    assert command[:3] == ["pscl-hpc", "segment", str(folder / "sem")]
    assert Path(command[4]).is_file()


def test_a_template_that_a_paint_program_saved_in_colours(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = suggest_annotation(request_of(folder, masks=()), folder / "out").template
    assert main(["segment", str(folder / "sem"), "--mask", str(template), "--out", str(folder / "two")]) == 2
    assert "has only the value 255, so nothing is annotated; paint the classes" in capsys.readouterr().err
    with pytest.raises(UserError, match="has only the value 255, so nothing seems to be annotated"):
        prepare(request_of(folder, masks=(str(template),), classes=("a", "b")), folder / "three")

    with Image.open(template) as empty:
        indices, palette = np.array(empty), empty.getpalette()
    indices[10:20], indices[20:30], indices[30:32] = 0, 2, 1
    painted = Image.fromarray(indices, "P")
    painted.putpalette(palette)
    coloured = folder / template.name
    painted.convert("RGB").save(coloured)
    for classes in (("a", "b", "c"), ()):
        said: list[str] = []
        wanted = request_of(folder, masks=(str(coloured),), images=(template.name[0],), classes=classes)
        inputs = prepare(wanted, folder / f"with {len(classes)} names", say=said.append).inputs
        assert inputs.classes == (classes or ("class 0", "class 1", "class 2"))
        assert any(f"#6e6e6e is {inputs.classes[0]}" in text and "#ffffff is ignore" in text for text in said)
        with Archive(inputs.archive) as archive:
            stored = archive.read_mask(archive.find(inputs.references[0]).index)
        np.testing.assert_array_equal(stored, indices)
    # The colour of a class that was not named.
    with pytest.raises(UserError, match="give the class of each with --mask-values"):
        prepare(request_of(folder, masks=(str(coloured),), classes=("a", "b")), folder / "four")


def test_a_half_transparent_mask(folder: Path) -> None:
    colours = np.zeros((48, 56, 4), np.uint8)
    colours[..., 0], colours[..., 3] = micrograph(1)[1] * 255, 128
    Image.fromarray(colours).save(folder / "1.png")
    with pytest.raises(UserError, match=r"2688 half-transparent pixels.*hard brush"):
        prepare(request_of(folder, masks=(str(folder / "1.png"),), classes=("a", "b")), folder / "out")


def test_information_bars_are_told(folder: Path) -> None:
    for number in range(3):
        image = with_bar(texture((300, 320), number), 30, ink=255, paper=0)
        Image.fromarray(image).save(folder / f"sem/{number}.png")
    Image.fromarray((texture((300, 320)) > 128).astype(np.uint8)).save(folder / "painted/1_mask.png")
    for crop, expected in ((0, "warning: sem: 3 of the 3 images looked at seem to have an information bar"),
                           (AUTO_CROP, "cut information bars from 3 of 3 images (30 rows)")):  # fmt: skip
        said: list[str] = []
        prepare(request_of(folder, crop_bottom=crop), folder / f"out{crop}", say=said.append)
        assert (
            [text for text in said if "information bar" in text]
            == [text for text in said if expected in text]
            != []
        )
