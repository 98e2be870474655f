"""Pictures show what they claim: patches where they lie, classes in their colours, errors by their kind."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pscl_hpc.report.inspection import image_figures
from pscl_hpc.report.pictures import (
    CONFUSED,
    CORRECT,
    ERROR_COLOURS,
    EXTRA,
    MISSED,
    UNSCORED,
    error_map,
    errors_uri,
    image_uri,
    labels_uri,
)
from pscl_hpc.report.predictions import prediction_panels
from pscl_hpc.results.inspection import read_inspection
from pscl_hpc.results.runs import collect
from pscl_hpc.results.scores import score_tables
from pscl_hpc.segmentation.palette import class_colours

from .fabricated_runs import Alloy, configure, make_alloy, make_finetuning, write_inspection


def decoded(uri: str) -> Image.Image:
    head, _, body = uri.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(body, validate=True)))


def test_small_pictures_keep_every_pixel() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 13), dtype=np.uint8)
    assert (np.asarray(decoded(image_uri(pixels, 400))) == pixels).all()
    colour = np.stack([pixels, pixels // 2, 255 - pixels], axis=-1)
    assert (np.asarray(decoded(image_uri(colour, 400))) == colour).all()


def test_large_pictures_are_averaged_down_in_proportion() -> None:
    pixels = np.zeros((100, 300), np.uint8)
    pixels[:, ::2] = 200
    small = np.asarray(decoded(image_uri(pixels, 150)))
    assert small.shape == (50, 150)
    assert (small == 100).all()
    assert decoded(image_uri(np.zeros((1, 5000), np.uint8), 100)).size == (100, 1)


def test_masks_have_the_palette_and_unknown_pixels_are_transparent() -> None:
    labels = np.array([[0, 1, 2], [3, 9, 255]], np.uint8)
    colours = class_colours(4)
    shown = np.asarray(decoded(labels_uri(labels, colours, 100)).convert("RGBA"))
    for place in ((0, 0), (0, 1), (0, 2), (1, 0)):
        assert (shown[place][:3] == colours[labels[place]]).all()
        assert shown[place][3] == 255
    assert shown[1, 1, 3] == shown[1, 2, 3] == 0


@pytest.mark.parametrize(
    ("predicted", "true", "kind"),
    [
        (1, 1, CORRECT),
        (0, 0, CORRECT),
        (0, 1, MISSED),
        (1, 0, EXTRA),
        (2, 1, CONFUSED),
        (1, 255, UNSCORED),
        (0, 255, UNSCORED),
    ],
)
def test_errors_are_of_four_kinds(predicted: int, true: int, kind: int) -> None:
    found = error_map(np.array([[predicted]], np.uint8), np.array([[true]], np.uint8), 0)
    assert found.tolist() == [[kind]]


def test_the_background_need_not_be_class_0() -> None:
    found = error_map(np.array([[2, 0, 0]], np.uint8), np.array([[0, 2, 1]], np.uint8), 2)
    assert found.tolist() == [[MISSED, EXTRA, CONFUSED]]


@pytest.mark.parametrize("channels", [(), (3,)])
def test_right_pixels_show_the_micrograph_and_the_others_their_kind(channels: tuple[int, ...]) -> None:
    image = np.full((2, 3, *channels), 40, np.uint8)
    image[0, 1:] = 200
    errors = np.array([[CORRECT, CORRECT, MISSED], [EXTRA, CONFUSED, UNSCORED]], np.uint8)
    shown = np.asarray(decoded(errors_uri(errors, image, 9)).convert("RGB")).astype(int)
    assert len(set(shown[0, 0])) == len(set(shown[0, 1])) == 1
    assert 128 <= shown[0, 0, 0] < shown[0, 1, 0] - 50
    for place in ((0, 2), (1, 0), (1, 1), (1, 2)):
        assert tuple(shown[place]) == ERROR_COLOURS[errors[place]]


def test_markers_lie_on_the_centres_of_their_patches(tmp_path: Path, alloy: Alloy) -> None:
    patches = np.full((4, 2, 2), -1, np.int32)
    patches[0, 0] = (10, 20)
    path = tmp_path / "inspection.npz"
    write_inspection(path, alloy, patches0=patches, class0=np.array([2, 1], np.int32))
    figure = image_figures(read_inspection(path))[0]
    (group,) = figure.scales[0].markers
    assert (group.style.name, len(group.paths)) == ("particle", 1)
    # 200 x 240 pixels on a grid of 50 x 60: patches of 4 pixels; the diamond's path begins at its top corner.
    x, y = (float(value) for value in re.match(r"M([\d.]+) ([\d.]+)L", group.paths[0]).groups())  # type: ignore[union-attr]
    radius = 240 / 70
    assert x == pytest.approx(20.5 * 4, abs=0.06)
    assert y == pytest.approx(10.5 * 4 - 1.22 * radius, abs=0.06)
    assert figure.scales[0].sampled == 1


def test_references_come_first_and_are_marked(tmp_path: Path, alloy: Alloy) -> None:
    path = tmp_path / "inspection.npz"
    write_inspection(path, alloy)
    figures = image_figures(read_inspection(path))
    assert [figure.reference for figure in figures] == [True, False, False, False]
    assert [bool(figure.mask) for figure in figures] == [True, True, True, False]
    assert [figure.scales[0].purity is None for figure in figures] == [False, False, False, True]
    assert [scale.name for scale in figures[0].scales] == [
        "1/4 resolution",
        "1/2 resolution",
        "full resolution",
    ]


def test_a_mask_of_another_collection_is_not_shown_in_these_classes(tmp_path: Path, alloy: Alloy) -> None:
    path = tmp_path / "inspection.npz"
    write_inspection(path, alloy, ids=np.array([alloy.references[0], "other/a", alloy.tests[0], "other/b"]))
    assert [bool(figure.mask) for figure in image_figures(read_inspection(path))] == [
        True,
        False,
        True,
        False,
    ]


def test_predictions_stand_beside_the_mask_from_best_to_worst(runs: Path, alloy: Alloy) -> None:
    found = collect([runs])
    (panel,) = prediction_panels(score_tables(found))
    assert panel.notes == []
    assert [figure.place for figure in panel.figures] == ["best", "typical", "worst"]
    rating = panel.shown[-1].evaluation.splits["test"].per_image
    dice = [figure.answers[-1].dice for figure in panel.figures]
    assert dice == [max(rating.values()), sorted(rating.values())[2], min(rating.values())]  # type: ignore[type-var]
    for figure in panel.figures:
        assert [answer.label for answer in figure.answers] == ["from scratch", "pretrained by PSCL-SimCLR"]
        mask = np.asarray(decoded(figure.mask).convert("RGB"))
        assert (mask == class_colours(4)[alloy.masks[figure.id]]).all()
        assert (np.asarray(decoded(figure.image)) == alloy.images[figure.id]).all()


def test_shown_runs_share_the_reference(runs: Path) -> None:
    (panel,) = prediction_panels(score_tables(collect([runs])))
    assert len({run.evaluation.references for run in panel.shown}) == 1


def test_without_the_archive_only_predictions_are_shown(tmp_path: Path, alloy: Alloy) -> None:
    run = make_finetuning(tmp_path / "run", alloy)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(alloy.archive), str(tmp_path / "gone.h5")))
    (panel,) = prediction_panels(score_tables(collect([run])))
    assert any("gone.h5" in note for note in panel.notes)
    assert panel.figures
    for figure in panel.figures:
        assert (figure.image, figure.mask, figure.answers[0].errors) == ("", "", "")
        assert decoded(figure.answers[0].predicted).size == (240, 200)


def test_masks_of_another_archive_than_was_scored_are_not_shown(tmp_path: Path, alloy: Alloy) -> None:
    make_finetuning(tmp_path / "a", alloy)
    run = make_finetuning(tmp_path / "b", alloy, pretrained="/x/trunk")
    other = make_alloy(tmp_path, size=(200, 240), references=3)
    configure(run, data={"archive": str(other.archive)})
    (panel,) = prediction_panels(score_tables(collect([tmp_path])))
    (note,) = panel.notes
    assert f"{other.archive} is not the archive that was scored" in note
    assert panel.figures
    for figure in panel.figures:
        assert (figure.image, figure.mask) == ("", "")
        for answer in figure.answers:
            assert (answer.errors, answer.right) == ("", None)
            assert decoded(answer.predicted).size == (240, 200)


def test_damaged_and_misfitting_predictions_are_named_and_left_out(tmp_path: Path, alloy: Alloy) -> None:
    run = make_finetuning(tmp_path / "run", alloy)
    files = sorted((run / "predictions" / "test").iterdir())
    for file in files[:-1]:
        file.write_bytes(b"no picture")
    Image.fromarray(np.zeros((3, 5), np.uint8)).save(files[-1])
    (panel,) = prediction_panels(score_tables(collect([run])))
    assert panel.figures == []
    assert len(panel.notes) == 3
    assert {note.partition(":")[0] for note in panel.notes} <= {str(file) for file in files}
    assert any("size differs" in note for note in panel.notes)


def test_without_predictions_a_note_says_so(tmp_path: Path, alloy: Alloy) -> None:
    run = make_finetuning(tmp_path / "run", alloy)
    for file in (run / "predictions" / "test").iterdir():
        file.unlink()
    (panel,) = prediction_panels(score_tables(collect([run])))
    assert panel.figures == []
    assert len(panel.notes) == 1
