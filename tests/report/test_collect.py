"""Finding and reading run folders in any state."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from pscl_hpc.errors import UserError
from pscl_hpc.report.curves import restarts
from pscl_hpc.report.inspection import explanation, image_figures
from pscl_hpc.results.evaluation import read_evaluation
from pscl_hpc.results.inspection import read_inspection
from pscl_hpc.results.runs import collect, find_runs
from pscl_hpc.results.settings import differences

from .fabricated_runs import Alloy, configure, make_finetuning, make_pretraining, write_inspection


def test_a_folder_of_runs_gives_each_once_and_pretraining_first(runs: Path) -> None:
    found = collect([runs, runs / "pretrain", runs / "scratch-0"])
    assert [run.label for run in found] == ["pretrain", "finetune-0", "finetune-1", "scratch-0", "scratch-1"]
    assert [run.kind for run in found] == ["pretrain"] + ["finetune"] * 4
    assert not any(run.damage or run.notes for run in found)


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path, alloy: Alloy) -> None:
    for parent in ("a", "b"):
        make_finetuning(tmp_path / parent / "run", alloy)
    assert [run.label for run in collect([tmp_path])] == ["a/run", "b/run"]


def test_ten_comes_after_nine(tmp_path: Path, alloy: Alloy) -> None:
    for index in (10, 9):
        make_finetuning(tmp_path / f"run-{index}", alloy)
    assert [run.label for run in collect([tmp_path])] == ["run-9", "run-10"]


def test_links_are_not_followed_out_of_the_folder(tmp_path: Path, runs: Path, alloy: Alloy) -> None:
    make_finetuning(tmp_path / "here" / "run", alloy)
    (tmp_path / "here" / "elsewhere").symlink_to(runs)
    assert [path.name for path in find_runs([tmp_path / "here"])] == ["run"]


def test_a_path_without_run_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(UserError, match=re.escape(str(path))):
            find_runs([path])


@pytest.mark.parametrize(
    ("status", "extra", "words"),
    [
        ("failed", {"error": "the loss is not finite"}, "Failed at step 300 of 300: the loss is not finite"),
        ("running", {}, "running at step 300 of 300"),
        ("stopped", {}, "Stopped at step 300 of 300"),
        ("", {}, "not recorded"),
    ],
)
def test_an_unfinished_run_says_so(
    tmp_path: Path, alloy: Alloy, status: str, extra: dict[str, str], words: str
) -> None:
    make_finetuning(tmp_path / "run", alloy, status=status, evaluated=False, **extra)
    (run,) = collect([tmp_path / "run"])
    assert any(words in note for note in run.notes)
    assert any("pscl-hpc evaluate" in note and "0.545" in note for note in run.notes)


def test_missing_parts_are_notes_and_damaged_ones_are_named(tmp_path: Path, alloy: Alloy) -> None:
    make_pretraining(tmp_path / "p", alloy, inspection=False)
    (tmp_path / "p" / "metrics.jsonl").unlink()
    make_finetuning(tmp_path / "f", alloy)
    (tmp_path / "f" / "evaluation.json").write_text('{"dice": ', encoding="utf-8")
    (tmp_path / "f" / "run.json").write_bytes(b"\xff\xfe{")
    (tmp_path / "f" / "config.yaml").write_text("kind: [finetune", encoding="utf-8")
    pretraining, other = collect([tmp_path])
    assert pretraining.damage == []
    assert any("inspection.npz" in note for note in pretraining.notes)
    assert any("no curves" in note for note in pretraining.notes)
    # Neither record nor configuration names the kind any more.
    assert other.kind == ""
    assert [Path(text.partition(":")[0]).name for text in other.damage] == ["run.json", "config.yaml"]


def test_a_torn_last_line_of_the_metrics_is_passed_over(tmp_path: Path, alloy: Alloy) -> None:
    make_finetuning(tmp_path / "run", alloy)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as handle:
        handle.write('{"step": 310, "lo')
    (run,) = collect([tmp_path / "run"])
    assert run.steps == 300
    assert run.damage == []


def test_a_restart_lies_where_the_attempt_says(runs: Path) -> None:
    run = collect([runs / "pretrain"])[0]
    first = {"started": "2026-01-01T00:00:00+00:00", "first_step": 0}
    assert restarts(run) == [600.0]
    assert restarts(collect([runs / "scratch-0"])[0]) == []
    run.record["attempts"] = [first, first, {"first_step": 40}, {"first_step": 40}, {"first_step": 75}]
    assert restarts(run) == [40.0, 75.0], "an attempt that began anew is not a restart"


def test_the_evaluation_is_read_as_written(runs: Path) -> None:
    path = runs / "scratch-0" / "evaluation.json"
    written = json.loads(path.read_text())
    found = read_evaluation(path)
    assert found.split == "test"
    assert found.splits["test"].mean_dice == written["mean_dice"]
    assert found.splits["test"].dice == written["dice"]
    assert set(found.splits["test"].per_image) == {
        item["id"] for item in written["splits"]["test"]["per_image"]
    }
    assert found.classes.names == tuple(written["classes"])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"splits": None}, "splits"),
        ({"split": "val"}, "'val'"),
        ({"classes": ["one"]}, "classes"),
        ({"background": "x"}, "background"),
        ({"archive": None}, "archive"),
    ],
)
def test_a_strange_evaluation_is_damage(
    tmp_path: Path, runs: Path, change: dict[str, object], named: str
) -> None:
    written = json.loads((runs / "scratch-0" / "evaluation.json").read_text())
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(written | change))
    with pytest.raises(UserError, match=rf"evaluation\.json: .*{named}"):
        read_evaluation(path)


def test_an_inspection_without_samples_is_whole(tmp_path: Path, alloy: Alloy) -> None:
    path = tmp_path / "inspection.npz"
    absent = {f"{key}{scale}": None for key in ("patches", "class", "purity") for scale in range(3)}
    write_inspection(path, alloy, **absent)
    found = read_inspection(path)
    assert [scale.patches.shape for scale in found.scales] == [(4, 0, 2)] * 3
    assert "Markers" not in explanation(found)


def test_clusters_are_not_called_an_annotation(tmp_path: Path, alloy: Alloy) -> None:
    path = tmp_path / "inspection.npz"
    write_inspection(path, alloy)
    annotated = explanation(read_inspection(path))
    write_inspection(path, alloy, references=np.array(0))
    clusters = explanation(read_inspection(path))
    assert "cluster" in clusters
    assert "cluster" not in annotated


def test_pictures_of_the_method_are_shown_by_name(tmp_path: Path, alloy: Alloy) -> None:
    path = tmp_path / "inspection.npz"
    write_inspection(path, alloy, **{"picture-restored": np.zeros((4, 8, 8), np.uint8)})
    found = read_inspection(path)
    assert "restored" in explanation(found)
    assert all([name for name, _ in figure.pictures] == ["restored"] for figure in image_figures(found))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"labels": None}, "labels"),
        ({"purity1": np.zeros(2, np.float32)}, "scale 1"),
        ({"images": np.zeros((4, 8, 8), np.float32)}, "images is float32"),
        ({"ids": np.array(["a"])}, "ids"),
        ({"grid2": np.zeros(2, np.int32)}, "scale 2"),
        ({"picture-restored": np.zeros((3, 8, 8), np.uint8)}, "pictures"),
    ],
)
def test_a_strange_inspection_is_damage(
    tmp_path: Path, alloy: Alloy, change: dict[str, object], named: str
) -> None:
    path = tmp_path / "inspection.npz"
    write_inspection(path, alloy, **change)
    with pytest.raises(UserError, match=rf"inspection\.npz: .*{named}"):
        read_inspection(path)


def test_an_inspection_is_never_unpickled(tmp_path: Path, alloy: Alloy) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    path = tmp_path / "inspection.npz"
    write_inspection(path, alloy, ids=np.array([Bomb()] * 4, dtype=object))
    with pytest.raises(UserError, match=r"inspection\.npz"):
        read_inspection(path)
    assert not (tmp_path / "exploded").exists()
    path.write_bytes(b"no archive at all")
    with pytest.raises(UserError, match=r"inspection\.npz"):
        read_inspection(path)


def test_relative_paths_start_where_the_run_was_started(
    tmp_path: Path, alloy: Alloy, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_finetuning(tmp_path / "work" / "runs" / "demo" / "f", alloy)
    configure(run, data={"archive": "data/alloys.h5"})
    monkeypatch.chdir(tmp_path)

    def located(folder: str) -> Path:
        configure(run, run=folder)
        (found,) = collect([run])
        return found.locate(str(found.setting("data.archive")))

    assert located("runs/demo/f") == tmp_path / "work" / "data" / "alloys.h5"
    assert located("elsewhere/f") == Path("data/alloys.h5")
    assert located("/somewhere/f") == Path("data/alloys.h5")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "alloys.h5").touch()
    assert located("runs/demo/f") == Path("data/alloys.h5")


def test_many_differing_settings_are_named_by_the_run_or_the_most_telling_ones() -> None:
    first = {"model": {"name": "unet"}, "schedule": {"steps": 1}, **{f"k{i}": i for i in range(8)}}
    second = {"model": {"name": "other"}, "schedule": {"steps": 2}, **{f"k{i}": -1 for i in range(8)}}
    telling = [
        "model.name unet, schedule.steps 1 and 8 others",
        "model.name other, schedule.steps 2 and 8 others",
    ]
    assert differences([first, second]) == telling
    assert differences([first, second], ["demo", ""]) == ["demo", telling[1]]
    assert differences([first, second], ["run", "run"]) == telling
    few = {"k0": 0, "k1": 1}
    assert differences([few, {"k0": 0, "k1": 2}], ["a", "b"]) == ["k1 1", "k1 2"]
