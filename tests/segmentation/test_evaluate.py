"""evaluation.json, the prediction files, and summaries."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pscl_hpc.archive import Archive, Collection, ShardWriter
from pscl_hpc.cli.main import main
from pscl_hpc.errors import UserError
from pscl_hpc.models import MODEL_FILE, load_segmentation, save_segmentation
from pscl_hpc.runs import RunFolder
from pscl_hpc.segmentation import ClassList, ConfusionMatrix, evaluate, finetune, predict
from pscl_hpc.segmentation.pictures import read_labels

from .helpers import ALLOY, micrograph, settings, write_archive


@pytest.fixture
def run(trained: RunFolder, tmp_path: Path) -> Path:
    """A copy of the trained run, without what other tests have scored in it."""
    scored = shutil.ignore_patterns("predictions", "evaluation.json")
    return Path(shutil.copytree(trained.path, tmp_path / "run", ignore=scored))


def test_scores_are_those_of_the_written_predictions(run: Path, archive_file: Path) -> None:
    content = evaluate(run)
    assert json.loads((run / "evaluation.json").read_text()) == content
    archive = Archive(archive_file)
    for split, names in {"test": ["alloy/test0", "alloy/test1"], "test_ood": ["alloy/test_ood0"]}.items():
        matrix = ConfusionMatrix(ClassList.of(ALLOY))
        for name in names:
            labels = read_labels(run / "predictions" / split / f"{name.replace('/', '__')}.png")
            matrix.update(labels, archive.read_mask(archive.find(name).index))
        expected = matrix.scores().to_json()
        found = dict(content["splits"][split])
        assert [image["id"] for image in found.pop("per_image")] == names
        assert found == expected
        if split == "test":
            assert {key: content[key] for key in expected} == expected
    assert content["mean_dice"] > 0.85
    assert set(content["dice"]) == {"carbide", "void"}
    assert (content["split"], content["collection"], content["references"]) == (
        "test",
        "alloy",
        ["alloy/train0"],
    )
    assert (content["images"], content["pretrained"]) == (2, "")
    assert content["checkpoint"] == RunFolder.load(run).record["best"]


@pytest.mark.parametrize(
    ("way", "value"),
    [
        ("tta", "rotations"),
        ("tta", "scales"),
        ("adapt", 0.5),
        ("correct_shading", True),
        ("unweighted", True),
    ],
)
def test_ways_of_inference_are_recorded_and_are_those_of_predict(
    run: Path, archive_file: Path, way: str, value: float
) -> None:
    def masks() -> dict[str, np.ndarray]:
        return {path.name: read_labels(path) for path in sorted((run / "predictions").glob("test*/*.png"))}

    assert evaluate(run)[way] in ("none", 0)
    plain = masks()
    assert evaluate(run, **{way: value})[way] == value
    augmented = masks()
    assert plain.keys() == augmented.keys()
    assert any(not np.array_equal(plain[name], augmented[name]) for name in plain)
    report = predict(run, ["alloy/test0", "alloy/test_ood0"], archive=archive_file, **{way: value})
    for image in report.written:
        np.testing.assert_array_equal(read_labels(Path(image.labels)), augmented[Path(image.labels).name])


def test_a_second_evaluation_writes_the_same_bytes(run: Path) -> None:
    files = []
    for _ in range(2):
        evaluate(run)
        files.append(
            {
                path.relative_to(run): path.read_bytes()
                for path in run.rglob("*")
                # These have the seconds and the time of the last evaluation.
                if path.suffix in (".json", ".png") and path.name not in ("run.json", "status.json")
            }
        )
    assert files[0] == files[1]
    assert not [path for path in run.rglob("*") if path.suffix == ".tmp"]


def test_predictions_of_images_that_are_no_longer_scored_are_removed(
    run: Path, archive_file: Path, tmp_path: Path
) -> None:
    """After a change of the archive; files that evaluate did not write, or that were changed since, are kept."""
    image, mask = micrograph(20)

    def scored_on(*names: str) -> set[str]:
        with ShardWriter(tmp_path / "other.h5", [ALLOY]) as writer:
            for name in names:
                writer.add(image, mask=mask, id=f"alloy/{name}", dataset="alloy", split="test")
        evaluate(run, archive=tmp_path / "other.h5")
        return {path.name.removeprefix("alloy__") for path in (run / "predictions" / "test").iterdir()}

    assert scored_on("a", "b", "c") == {"a.png", "b.png", "c.png"}
    folder = run / "predictions" / "test"
    (folder / "alloy__b.png").write_bytes(b"drawn over by hand")
    (folder / "alloy__mine.png").write_bytes((folder / "alloy__a.png").read_bytes())
    predict(run, ["alloy/test0"], archive=archive_file)
    assert scored_on("c", "d") == {"b.png", "c.png", "d.png", "mine.png"}
    assert len(list((run / "predictions" / "files").iterdir())) == 2
    evaluate(run, splits=["val"])
    assert scored_on("e") == {"b.png", "e.png", "mine.png"}, "the record keeps other splits"
    assert (run / "predictions" / "val" / "alloy__val0.png").is_file()


@pytest.mark.parametrize(
    "record", ["{", "[1]", {"test": 3}, {"test": {"../../own.png": None, "a.png": 1}}, {"..": {}}]
)
def test_an_edited_record_does_not_remove_other_files(run: Path, record: Any) -> None:
    own = run / "own.png"
    own.write_bytes(b"mine")
    digest = hashlib.sha256(b"mine").hexdigest()
    (run / "predictions").mkdir()
    (run / "predictions" / "kept").mkdir()
    linked = run / "predictions" / "test"
    linked.symlink_to(run / "predictions" / "kept")
    (linked / "x.png").write_bytes(b"mine")
    text = record if isinstance(record, str) else json.dumps(record).replace("null", f'"{digest}"')
    (run / "predictions" / "written.json").write_text(text)
    evaluate(run)
    (run / "predictions" / "written.json").write_text(
        json.dumps({"..": {"own.png": digest}, "test": {"../own.png": digest, "x.png": digest}})
    )
    evaluate(run)
    assert own.read_bytes() == b"mine"
    assert (linked / "x.png").read_bytes() == b"mine"


def test_chosen_splits_leave_the_references_out(run: Path) -> None:
    content = evaluate(run, splits=["val", "train"])
    assert list(content["splits"]) == ["val", "train"]
    assert content["split"] == "val"
    names = {image["id"] for image in content["splits"]["train"]["per_image"]}
    assert names == {"alloy/train1", "alloy/blank"}


def test_an_image_without_annotation_has_no_scores(run: Path) -> None:
    content = evaluate(run, splits=["train"])
    blank = next(image for image in content["splits"]["train"]["per_image"] if image["id"] == "alloy/blank")
    assert blank["mean_dice"] is None
    assert blank["pixel_accuracy"] is None


def test_another_archive_of_the_same_collection(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, mask = micrograph(20)
    other = tmp_path / "other.h5"
    with ShardWriter(other, [ALLOY]) as writer:
        writer.add(image, mask=mask, id="alloy/new", dataset="alloy", split="test")
    content = evaluate(run, archive=other)
    assert [image["id"] for image in content["splits"]["test"]["per_image"]] == ["alloy/new"]
    assert content["archive"] == Archive(other).fingerprint
    assert main(["evaluate", str(run), "--archive", str(other)]) == 0
    assert capsys.readouterr().out.startswith("test: 1 image, ")


def test_wrong_archives_splits_and_runs_are_refused(run: Path, tmp_path: Path) -> None:
    image, mask = micrograph(20)
    other = tmp_path / "other.h5"
    renamed = Collection("alloy", ("matrix", "carbide", "pore", "scratch"), 0, (3,))
    with ShardWriter(other, [renamed]) as writer:
        writer.add(image, mask=mask, id="alloy/new", dataset="alloy", split="test")
    with pytest.raises(UserError, match=r"other\.h5.*alloy.*--archive"):
        evaluate(run, archive=other)
    with pytest.raises(UserError, match=r"'tset'.*did you mean 'test'"):
        evaluate(run, splits=["tset"])
    with ShardWriter(other, [ALLOY]) as writer:
        writer.add(image, mask=mask, id="alloy/new", dataset="alloy", split="extra")
    with pytest.raises(UserError, match=r"--split: 'extra'$"):
        evaluate(run, archive=other)
    with ShardWriter(other, [ALLOY]) as writer:
        writer.add(image, id="alloy/new", dataset="alloy")
    with pytest.raises(UserError, match=r"other\.h5.*alloy.*splits\.json.*--archive"):
        evaluate(run, archive=other)
    (run / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors"):
        evaluate(run)
    with pytest.raises(UserError, match="run folder"):
        evaluate(tmp_path / "nowhere")


def test_an_archive_that_was_moved_must_be_named(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "a.h5")
    finetune(settings(path, tmp_path / "run", schedule={"steps": 1}))
    path.rename(tmp_path / "moved.h5")
    with pytest.raises(UserError, match=r"a\.h5.*--archive"):
        evaluate(tmp_path / "run")
    assert evaluate(tmp_path / "run", archive=tmp_path / "moved.h5")["images"] == 2


def test_class_weights_that_cannot_be_taken_out(run: Path, tmp_path: Path) -> None:
    for name, weights in (("unknown", ()), ("zero", (1.0, 0.0, 1.0, 1.0))):
        other = shutil.copytree(run, tmp_path / name)
        net, card = load_segmentation(other)
        save_segmentation(other / MODEL_FILE, net, replace(card, class_weights=weights))
        with pytest.raises(UserError, match=rf"{name}.*--unweighted"):
            evaluate(other, unweighted=True)
