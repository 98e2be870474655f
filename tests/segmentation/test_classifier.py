"""Pixel classifiers: training, scores, predictions, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pscl_hpc.archive import IGNORE_INDEX, Archive, Collection, ShardWriter
from pscl_hpc.archive.windows import covering_square
from pscl_hpc.classifiers import CLASSIFIER_FILE
from pscl_hpc.cli.main import main
from pscl_hpc.config import load_config, resolve_config, to_yaml
from pscl_hpc.errors import UserError
from pscl_hpc.launch.profiles import Profile
from pscl_hpc.launch.status import run_status
from pscl_hpc.launch.submission import submit
from pscl_hpc.report import write_report
from pscl_hpc.results.runs import collect
from pscl_hpc.results.scores import score_tables
from pscl_hpc.runs import RunFolder
from pscl_hpc.segmentation import evaluate, finetune, predict, train_classifier
from pscl_hpc.segmentation.classifier_config import ClassifierConfig
from pscl_hpc.segmentation.classify import draw_pixels

from .helpers import CLASSES, SCRATCH, micrograph, settings

CONFIGS = Path(__file__).resolve().parents[2] / "configs/classifier"
TRUNK = {
    "name": "trunk",
    "model": {"name": "unet", "widths": [4, 8]},
    "strides": [1, 2],
    "filters": {"sigmas": [1.0], "medians": []},
}


def classifier(archive: Path, run: Path, **changes: Any) -> ClassifierConfig:
    """A configuration of less than a second; ``changes`` replace whole sections or single keys."""
    tree: dict[str, Any] = {
        "kind": "classifier",
        "run": str(run),
        "data": {"archive": str(archive)},
        "references": ["alloy/train0"],
        "features": {"name": "filters", "sigmas": [1.0, 2.0], "medians": [3]},
        "head": {"name": "mlp", "steps": 150},
        "pixels": {"per_class": 200},
        "runtime": {"device": "cpu", "threads": 1},
    }
    config = resolve_config({**tree, **changes}, source="test")
    assert isinstance(config, ClassifierConfig)
    return config


@pytest.fixture(scope="module")
def done(archive_file: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A classifier that has learnt its task, with scores."""
    folder = train_classifier(classifier(archive_file, tmp_path_factory.mktemp("classifier") / "run"))
    evaluate(folder.path)
    return RunFolder.load(folder.path)


def test_a_run_has_the_files_of_a_model(done: RunFolder) -> None:
    scores = json.loads((done.path / "evaluation.json").read_text())
    assert set(scores["splits"]) == {"test", "test_ood"}
    # Grey levels tell the classes, apart from the ignored one.
    assert all(split["mean_dice"] > 0.9 for split in scores["splits"].values())
    assert load_config(done.path / "config.yaml") == done.config
    assert done.record["status"] == "done"
    assert done.record["pixels"].keys() == set(CLASSES) - {CLASSES[SCRATCH]}
    assert all(0 < count <= 200 for count in done.record["pixels"].values())
    assert done.record["ingest_options"]["annotated"]
    assert set(done.record["seconds"]) == {"features", "head"}
    assert done.record["prediction"]["images"] == 3
    status = run_status(done.path)
    assert (status.state, status.step, status.total, status.checkpoint) == ("done", 150, 150, None)
    assert json.loads((done.path / "status.json").read_text())["total"] == 150
    last = done.metrics()[-1]
    assert last["step"] == 150
    assert last["train_accuracy"] > 0.9


def test_the_same_run_has_the_same_bytes(done: RunFolder, archive_file: Path, tmp_path: Path) -> None:
    again = train_classifier(classifier(archive_file, tmp_path / "run", cache=str(tmp_path / "features")))
    for _ in range(2):  # without and with the cache
        evaluate(again.path)
        assert (again.path / "evaluation.json").read_bytes() == (done.path / "evaluation.json").read_bytes()
    assert (again.path / CLASSIFIER_FILE).read_bytes() == (done.path / CLASSIFIER_FILE).read_bytes()
    assert (
        len(list((tmp_path / "features").rglob("*.safetensors"))) == 4
    )  # the reference and three test images
    before = (again.path / CLASSIFIER_FILE).stat().st_mtime_ns
    assert train_classifier(classifier(archive_file, tmp_path / "run", cache="")).done
    assert (again.path / CLASSIFIER_FILE).stat().st_mtime_ns == before, "a finished run is not repeated"


def test_another_seed_draws_other_pixels(done: RunFolder, archive_file: Path, tmp_path: Path) -> None:
    other = train_classifier(classifier(archive_file, tmp_path / "run", seed=11))
    assert (other.path / CLASSIFIER_FILE).read_bytes() != (done.path / CLASSIFIER_FILE).read_bytes()


@pytest.mark.parametrize("head", ["linear", "knn", "forest", "boosting"])
def test_every_head_scores_and_predicts(
    head: str, archive_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"linear": {"steps": 100, "lr": 0.05}, "forest": {"trees": 10}, "boosting": {"trees": 5}}.get(
        head, {}
    )
    folder = train_classifier(classifier(archive_file, tmp_path / "run", head={"name": head, **keys}))
    assert evaluate(folder.path)["mean_dice"] > 0.8
    capsys.readouterr()
    assert main(["jobs", "status", str(folder.path)]) == 0
    # Only networks have steps.
    assert ("step:" in capsys.readouterr().out) == (head == "linear")


def test_frozen_features_of_a_pretrained_trunk(
    trained: RunFolder, archive_file: Path, tmp_path: Path
) -> None:
    features = {key: value for key, value in TRUNK.items() if key != "model"}
    config = classifier(archive_file, tmp_path / "run", features=features, pretrained=str(trained.path))
    folder = train_classifier(config)
    scores = evaluate(folder.path)
    assert scores["mean_dice"] > 0.9
    assert scores["pretrained"] == str(trained.path)
    # The file has the trunk, too: the pretraining is not needed again.
    moved = tmp_path / "moved"
    folder.path.rename(moved)
    stored = (moved / "config.yaml").read_text().replace(str(trained.path), str(tmp_path / "gone"))
    (moved / "config.yaml").write_text(stored)
    assert evaluate(moved)["mean_dice"] == scores["mean_dice"]
    assert evaluate(moved, tta="rotations")["mean_dice"] > 0.9


def test_unannotated_and_ignored_pixels_are_not_drawn() -> None:
    mask = micrograph(0)[1]
    mask[mask == SCRATCH] = IGNORE_INDEX
    other = np.full((20, 30), IGNORE_INDEX, np.uint8)
    other[0, :5] = 2
    shown = (0, 1, 2)
    chosen = draw_pixels([mask, other], shown, 30, seed=3)
    labels = np.concatenate([mask[chosen[0]], other[chosen[1]]])
    assert np.bincount(labels, minlength=3).tolist() == [30, 30, 30]
    assert IGNORE_INDEX not in labels
    everything = draw_pixels([mask, other], shown, 10**6, seed=3)
    assert np.array_equal(everything[0], mask != IGNORE_INDEX)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(chosen, draw_pixels([mask, other], shown, 30, seed=3), strict=True)
    )


def test_only_the_square_is_learnt_from(archive_file: Path, tmp_path: Path) -> None:
    changes = {"square": 16, "pixels": {"per_class": 10**6}}
    folder = train_classifier(classifier(archive_file, tmp_path / "run", **changes))
    mask = micrograph(0)[1]
    top, left, height, width = covering_square(mask, (0, 1, 2), 16)
    part = mask[top : top + height, left : left + width]
    expected = {CLASSES[index]: int((part == index).sum()) for index in range(3) if (part == index).any()}
    assert folder.record["pixels"] == expected


def test_two_references_are_both_used(archive_file: Path, tmp_path: Path) -> None:
    changes = {"references": ["alloy/train0", "alloy/train1"], "pixels": {"per_class": 10**6}}
    folder = train_classifier(classifier(archive_file, tmp_path / "run", **changes))
    masks = [micrograph(place, 48 + place, 56 - place)[1] for place in range(2)]
    assert folder.record["pixels"]["carbide"] == sum(int((mask == 1).sum()) for mask in masks)


def test_a_class_that_the_reference_lacks_is_not_predicted(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a.h5", [Collection("alloy", CLASSES[:3], 0)]) as writer:
        for place, split in enumerate(("train", "test")):
            image, mask = micrograph(place)
            mask[(mask == SCRATCH) | ((mask == 2) & (split == "train"))] = IGNORE_INDEX
            writer.add(image, mask=mask, id=f"alloy/{split}0", dataset="alloy", split=split)
    folder = train_classifier(classifier(tmp_path / "a.h5", tmp_path / "run"))
    scores = evaluate(folder.path)
    assert scores["dice"]["void"] == 0
    assert scores["dice"]["carbide"] > 0.8


def test_a_class_that_the_reference_lacks_is_said_before_training_and_by_predict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ShardWriter(tmp_path / "a.h5", [Collection("alloy", CLASSES)]) as writer:
        image, mask = micrograph(0)
        writer.add(image, mask=np.minimum(mask, 1), id="alloy/0", dataset="alloy", split="train")
    run = train_classifier(classifier(tmp_path / "a.h5", tmp_path / "run", references=["alloy/0"]))
    assert f"no pixel of {CLASSES[2]}" in capsys.readouterr().err
    Image.fromarray(image).save(tmp_path / "x.png")
    assert any(CLASSES[2] in warning for warning in predict(run.path, [tmp_path / "x.png"]).warnings)


def test_files_are_predicted_and_ways_for_networks_are_refused(done: RunFolder, tmp_path: Path) -> None:
    image, mask = micrograph(9)
    Image.fromarray(image).save(tmp_path / "new.png")
    report = predict(done.path, [tmp_path / "new.png"], out=tmp_path / "out")
    found = np.asarray(Image.open(report.written[0].labels))
    scored = (mask != IGNORE_INDEX) & (mask != SCRATCH)
    assert (found == mask)[scored].mean() > 0.9
    with pytest.raises(UserError, match="--adapt"):
        predict(done.path, [tmp_path / "new.png"], out=tmp_path / "out", adapt=0.1)
    with pytest.raises(UserError, match="--correct-shading"):
        predict(done.path, [tmp_path / "new.png"], out=tmp_path / "out", correct_shading=True)
    with pytest.raises(UserError, match="--unweighted"):
        predict(done.path, [tmp_path / "new.png"], out=tmp_path / "out", unweighted=True)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"references": ["alloy/test0"]}, "alloy/test0"),
        ({"references": ["alloy/blank"]}, "alloy/blank"),
        ({"references": ["other/a"], "square": 1}, "one class only"),
        ({"pretrained": "somewhere"}, "pretrained"),
        ({"features": {"name": "trunk"}}, r"features\.model"),
        ({"head": {"name": "mpl"}}, "did you mean 'mlp'"),
        ({"features": {"name": "filters", "sigma": [1]}}, "did you mean 'sigmas'"),
        ({"features": {"name": "trunk", "model": {"name": "unet"}, "strides": []}}, "strides"),
    ],
)
def test_wrong_input_is_named(
    changes: dict[str, Any], named: str, archive_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=named):
        train_classifier(classifier(archive_file, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_an_archive_that_has_changed_is_refused(archive_file: Path, tmp_path: Path) -> None:
    config = classifier(archive_file, tmp_path / "run")
    RunFolder.reserve(config).update(archive="another", status="stopped")
    with pytest.raises(UserError, match="has changed"):
        train_classifier(config)


def test_a_network_is_not_a_classifier_and_back(done: RunFolder, archive_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.safetensors"):
        finetune(settings(archive_file, tmp_path / "run", pretrained=str(done.path)))


def test_the_report_has_classifier_and_network(done: RunFolder, trained: RunFolder, tmp_path: Path) -> None:
    evaluate(trained.path)
    report = write_report([done.path, trained.path], tmp_path / "report.html")
    assert report.damage == ()
    page = report.path.read_text(encoding="utf-8")
    assert "pixel classifier" in page
    table = next(table for table in score_tables(collect([done.path, trained.path])) if table.primary)
    assert {group.start for group in table.groups} == {"from scratch", "pixel classifier"}
    assert not any(found.pretrained.start == "pixel classifier" for found in table.comparisons)


def test_the_command_trains_and_names_errors(
    archive_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(to_yaml(classifier(archive_file, tmp_path / "run")), encoding="utf-8")
    assert main(["classifier", "--config", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == str(tmp_path / "run")
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert main(["classifier", "--config", str(file), "references=[alloy/nothing]", "run=other"]) == 2
    assert "alloy/nothing" in capsys.readouterr().err
    assert main(["finetune", "--config", str(file)]) == 2
    assert "pscl-hpc classifier" in capsys.readouterr().err


def test_several_ranks_are_refused(
    archive_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**place, "MASTER_ADDR": "localhost", "MASTER_PORT": "29501"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="one process"):
        train_classifier(classifier(archive_file, tmp_path / "run"))


def test_a_job_of_several_ranks_is_refused_before_it_waits(archive_file: Path, tmp_path: Path) -> None:
    profile = Profile().replace("test", tasks_per_node=2)
    with pytest.raises(UserError, match="one process"):
        submit(classifier(archive_file, tmp_path / "run"), cluster="local", profile=profile)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_files_are_valid_and_fit_an_archive(file: Path, archive_file: Path, tmp_path: Path) -> None:
    overrides = [f"data.archive={archive_file}", "references=[alloy/train0]", f"run={tmp_path / 'run'}"]
    config = load_config(file, [*overrides, "head.steps=2", "runtime.threads=1"])
    assert isinstance(config, ClassifierConfig)
    folder = train_classifier(config)
    with Archive(archive_file) as archive:
        assert folder.record["archive"] == archive.fingerprint
