"""A study's life with jobs that are made up: caching, growth, failures, results, page."""

from __future__ import annotations

import json
import math
import re
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest

from pscl_hpc.config import StudyConfig, load_config
from pscl_hpc.errors import UserError
from pscl_hpc.report import write_report
from pscl_hpc.report.study_figures import budget_chart, paper_figure
from pscl_hpc.report.study_page import sentences
from pscl_hpc.report.study_predictions import study_panels
from pscl_hpc.report.study_results import RESULTS_FILE, Sampling, StudyResults, read_results
from pscl_hpc.report.study_text import notes
from pscl_hpc.study.results import gather
from pscl_hpc.study.run import STUDY_FILE, look, run_study
from pscl_hpc.study.tables import TABLE_FILE, sampling_table

from .material import Fabricator, small_study

NONE = {"name": "none", "pretrain": "none"}
AMOUNTS = {"scratch": 0.4, "simclr": 0.3, "pscl-simclr": 0.15}


def run(study: StudyConfig, executor: Fabricator) -> StudyResults:
    return run_study(study, executor, jobs=2, progress=False)[1]


@pytest.fixture(scope="module")
def finished(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of two seeds."""
    folder = tmp_path_factory.mktemp("finished") / "study"
    study = small_study(archive, folder, seeds=[1, 2], headline=["alloy/test", "alloy/test_ood"])
    run(study, Fabricator(amounts=AMOUNTS))
    return folder


@pytest.fixture
def both(archive: Path, tmp_path: Path) -> StudyConfig:
    """A study whose pool is annotated, for studies of both data sets."""
    return small_study(
        archive,
        tmp_path / "study",
        pretrain={
            "data": {"datasets": ["alloy", "bare"]},
            "batch_size": 3,
            "views": {"size": [32, 32]},
            "model": {"widths": [4, 8, 8]},
            "schedule": {"steps": 4},
        },
    )


def test_what_is_done_is_never_done_again(archive: Path, tmp_path: Path) -> None:
    study = small_study(archive, tmp_path / "study")
    first, again = Fabricator(), Fabricator()
    results = run(study, first)
    assert len(first.started) == 4 + 9
    assert (results.scored, results.runs, results.missing, results.failed) == (9, 9, (), ())
    assert run(study, again).rows == results.rows
    assert again.started == []
    assert look(study).missing == []


def test_a_study_that_has_grown_does_what_is_new(archive: Path, tmp_path: Path) -> None:
    run(small_study(archive, tmp_path / "study"), Fabricator())
    more = Fabricator()
    results = run(small_study(archive, tmp_path / "study", seeds=[10, 11]), more)
    assert len(more.started) == 4 + 9
    assert all("seed 11" in label for label in more.started)
    assert results.scored == 18


def test_a_changed_setting_is_another_run_and_the_old_one_stays(archive: Path, tmp_path: Path) -> None:
    run(small_study(archive, tmp_path / "study"), Fabricator())
    before = sorted(path for path in (tmp_path / "study").rglob("evaluation.json"))
    changed = Fabricator()
    small = {"model": {"widths": [4, 8, 8]}, "crop": [32, 32], "batch_size": 2}
    results = run(
        small_study(archive, tmp_path / "study", finetune={**small, "schedule": {"steps": 5}}), changed
    )
    assert len(changed.started) == 9
    assert not any(label.startswith("pretraining") for label in changed.started)
    assert results.scored == 9
    assert all(path.exists() for path in before)


def test_a_failure_is_named_and_stays_alone_and_is_tried_again(archive: Path, tmp_path: Path) -> None:
    study = small_study(archive, tmp_path / "study")
    broken = Fabricator(failing=("pretraining pscl-simclr t1", "t2 budget 1 seed 10 none"))
    results = run(study, broken)
    reasons = {item.job: (item.state, item.reason) for item in results.failed}
    assert reasons == {
        "pretraining pscl-simclr t1 seed 10": ("failed", "it was about pretraining pscl-simclr t1"),
        "alloy t1 budget 1 seed 10 pscl": (
            "skipped",
            "its pretraining failed: it was about pretraining pscl-simclr t1",
        ),
        "alloy t2 budget 1 seed 10 none": ("failed", "it was about t2 budget 1 seed 10 none"),
    }
    assert (results.scored, len(results.missing)) == (7, 2)
    assert "it was about" in (study.folder / TABLE_FILE).read_text(encoding="utf-8")
    mended = Fabricator()
    results = run(study, mended)
    assert sorted(mended.started) == sorted(reasons)
    assert (results.scored, results.failed) == (9, ())


def test_an_unfinished_run_goes_on_with_the_configuration_it_began_with(
    archive: Path, tmp_path: Path
) -> None:
    class Watching(Fabricator):
        def start(self, job: Any) -> None:
            self.every = {*getattr(self, "every", set()), job.config.log.every_steps}
            super().start(job)

    study = small_study(archive, tmp_path / "study")
    run(study, Watching(failing=("alloy",)))
    second = Watching()
    small = {"model": {"widths": [4, 8, 8]}, "crop": [32, 32], "batch_size": 2, "schedule": {"steps": 4}}
    run(small_study(archive, tmp_path / "study", finetune={**small, "log": {"every_steps": 3}}), second)
    assert second.every == {10}


def test_an_unfinished_run_goes_on_after_its_archive_and_its_study_were_moved(
    archive: Path, tmp_path: Path
) -> None:
    shutil.copy(archive, tmp_path / "a.h5")
    run(small_study(tmp_path / "a.h5", tmp_path / "study"), Fabricator(failing=("alloy",)))
    (tmp_path / "a.h5").rename(tmp_path / "b.h5")
    (tmp_path / "study").rename(tmp_path / "moved")
    study = small_study(tmp_path / "b.h5", tmp_path / "moved")
    begun = look(study).missing
    assert len(begun) == 9
    assert run(study, Fabricator()).scored == 9
    for job in begun:
        assert load_config(job.folder / "config.yaml") == job.config


def test_a_run_whose_configuration_was_edited_is_not_taken_for_the_same(
    archive: Path, tmp_path: Path
) -> None:
    study = small_study(archive, tmp_path / "study")
    run(study, Fabricator(failing=("none",)))
    stored = [job.folder / "config.yaml" for job in look(study).missing]
    stored[0].write_text(stored[0].read_text().replace("batch_size: 2", "batch_size: 3"))
    results = run(study, Fabricator())
    assert len(results.failed) == 1
    assert "was changed after the run began" in results.failed[0].reason


@pytest.mark.parametrize("damage", ["evaluation.json", "run.json"])
def test_a_damaged_product_is_missing(archive: Path, tmp_path: Path, damage: str) -> None:
    study = small_study(archive, tmp_path / "study")
    run(study, Fabricator())
    victim = next(study.folder.glob(f"finetune/*/{damage}"))
    victim.write_text("{")
    assert [str(job.folder) for job in look(study).missing] == [str(victim.parent)]


def changed(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_run_of_another_archive_does_not_count_and_is_named(archive: Path, tmp_path: Path) -> None:
    study = small_study(archive, tmp_path / "study", methods=[NONE])
    run(study, Fabricator())
    record = next(study.folder.glob("finetune/*/run.json"))
    assert json.loads(record.read_text())["archive"] == look(study).plan.fingerprint
    changed(record, archive="another")
    results = run(study, Fabricator())
    assert (results.scored, len(results.missing)) == (2, 1)
    assert [item.state for item in results.failed] == ["failed"]
    assert f"{record.parent}: was made from another archive" in results.failed[0].reason
    # One from before archives were recorded.
    tree = json.loads(record.read_text())
    del tree["archive"]
    record.write_text(json.dumps(tree))
    assert look(study).missing == []


def test_scores_of_another_archive_do_not_count_and_are_made_anew(archive: Path, tmp_path: Path) -> None:
    study = small_study(archive, tmp_path / "study", methods=[NONE])
    run(study, Fabricator())
    changed(next(study.folder.glob("finetune/*/evaluation.json")), archive="another")
    assert gather(look(study).plan, {}).scored == 2
    again = Fabricator()
    assert run(study, again).scored == 3
    assert len(again.started) == 1


def test_scores_of_other_splits_do_not_take_the_place_of_test_scores(archive: Path, tmp_path: Path) -> None:
    """``pscl-hpc evaluate --split`` replaces evaluation.json."""
    study = small_study(archive, tmp_path / "study", methods=[NONE])
    before = run(study, Fabricator())
    validated, partial, more = sorted(study.folder.glob("finetune/*/evaluation.json"))
    splits = json.loads(more.read_text())["splits"]
    changed(validated, split="val", splits={"val": splits["test"]})
    changed(partial, splits={"test": splits["test"]})
    changed(more, splits={**splits, "val": splits["test"]})
    state = look(study)
    assert {job.folder for job in state.missing} == {validated.parent, partial.parent}
    found = gather(state.plan, {})
    assert (found.scored, len(found.missing)) == (1, 2)
    assert [line.split for line in found.table] == ["test", "test_ood"]
    again = Fabricator()
    assert run(study, again).rows == before.rows
    assert len(again.started) == 2


def test_folders_of_others_are_left_alone(archive: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no study"):
        run(small_study(archive, folder), Fabricator())
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").unlink()
    run(small_study(archive, folder), Fabricator())
    with pytest.raises(UserError, match="holds the study 'small'"):
        run(small_study(archive, folder, name="another"), Fabricator())
    with pytest.raises(UserError, match="is a file"):
        run(small_study(archive, folder / STUDY_FILE), Fabricator())


def test_what_a_killed_process_left_of_its_archive_is_in_nobodys_way(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / ".123-synthetic-01234567.h5").write_bytes(b"half")
    datasets = [{"name": "synthetic_particles", "references": {"count": 1}}]
    made = {"images": 8, "size": [48, 48]}
    study = small_study("", folder, synthetic=made, datasets=datasets, methods=[NONE])
    assert len(look(study).missing) == 1


def test_two_processes_do_not_run_one_study(archive: Path, tmp_path: Path) -> None:
    study = small_study(archive, tmp_path / "study")

    class Second(Fabricator):
        def start(self, job: Any) -> None:
            with pytest.raises(UserError, match="another process runs this study"):
                run(study, Fabricator())
            super().start(job)

    assert run(study, Second()).scored == 9


def test_rows_tell_everything_of_a_run(finished: Path) -> None:
    results = read_results(finished)
    assert len(results.rows) == 3 * 3 * 2 * 2
    for row in results.rows:
        evaluation = json.loads((finished / row.folder / "evaluation.json").read_text())
        assert row.mean_dice == evaluation["splits"][row.split]["mean_dice"]
        assert row.dice == evaluation["splits"][row.split]["dice"]
        assert row.references == tuple(evaluation["references"])
        assert bool(row.pretraining) == (row.method != "none")
        assert not row.pretraining or (finished / row.pretraining / "run.json").is_file()
        assert (row.step, row.validation_dice) == (3, 0.5)
    assert len({row.key for row in results.rows}) == 18


def test_tables_are_means_over_runs_and_comparisons_pair_images(finished: Path) -> None:
    results = read_results(finished)
    dice = {(row.method, row.split, row.references, row.seed): row.mean_dice for row in results.rows}
    references = sorted({row.references for row in results.rows})
    line = next(line for line in results.table if (line.method, line.split) == ("pscl", "test"))
    values = [dice["pscl", "test", name, seed] for name in references for seed in (1, 2)]
    assert line.mean_dice is not None
    assert line.mean_dice.mean == pytest.approx(sum(values) / 6)  # type: ignore[arg-type]
    worst = {name: (dice["pscl", "test", name, 1] + dice["pscl", "test", name, 2]) / 2 for name in references}  # type: ignore[operator]
    assert line.worst is not None
    assert line.worst.mean_dice == pytest.approx(min(worst.values()))
    assert worst[line.worst.references] == min(worst.values())

    def error(method: str, split: str) -> float:
        return sum(1 - dice[method, split, name, seed] for name in references for seed in (1, 2)) / 6  # type: ignore[operator]

    one = next(
        c for c in results.comparisons if (c.method, c.baseline, c.split) == ("pscl", "none", "test_ood")
    )
    assert one.units == 3
    assert one.error_removed is not None
    assert one.error_removed.value == pytest.approx(1 - error("pscl", "test_ood") / error("none", "test_ood"))
    total = next(c for c in results.comparisons if (c.method, c.baseline, c.split) == ("pscl", "none", ""))
    both = [error(method, "test") + error(method, "test_ood") for method in ("pscl", "none")]
    # Both splits score the same runs: three annotated images, not six.
    assert total.units == 3
    assert total.error_removed is not None
    assert total.error_removed.value == pytest.approx(1 - both[0] / both[1])
    assert total.gain.value > 0.1
    assert total.gain.low is not None
    gains = [
        sum(
            dice["pscl", split, name, seed] - dice["none", split, name, seed]  # type: ignore[operator]
            for split in ("test", "test_ood")
            for seed in (1, 2)
        )
        / 4
        for name in references
    ]
    reach = 4.302652729911275 * math.sqrt(statistics.variance(gains) / 3)  # t of 0.975, 2 degrees of freedom
    assert total.gain.value - total.gain.low == pytest.approx(reach)
    assert {c.baseline for c in results.comparisons} == {"none", "simclr"}


def test_a_comparison_rests_on_the_repetitions_that_both_have(archive: Path, tmp_path: Path) -> None:
    results = run(small_study(archive, tmp_path / "study"), Fabricator(failing=("t1 budget 1 seed 10 none",)))
    units = {(c.method, c.baseline): c.units for c in results.comparisons if c.split == "test"}
    assert units == {
        ("simclr", "none"): 2,
        ("pscl", "none"): 2,
        ("none", "simclr"): 2,
        ("pscl", "simclr"): 3,
    }


def test_repetitions_that_share_images_have_no_interval(archive: Path, tmp_path: Path) -> None:
    study = small_study(
        archive, tmp_path / "study", budgets=[1, 2], headline=["alloy/test", "alloy/test_ood"]
    )
    results = run(study, Fabricator(amounts=AMOUNTS))
    assert {c.units for c in results.comparisons} == {3}
    for found in results.comparisons:
        assert found.error_removed is not None
        for estimate in (found.gain, found.error_removed):
            assert (estimate.low is None) == (estimate.high is None) == (found.budget == 2)
    table = (tmp_path / "study" / TABLE_FILE).read_text(encoding="utf-8")
    row = next(line for line in table.splitlines() if line.startswith("| pscl | all headline scores | 2 |"))
    assert [cell.strip() for cell in row.split("|")][6:9:2] == ["-", "-"]
    assert "have annotated images in common" in table
    page = write_report([tmp_path / "study"]).path.read_text(encoding="utf-8")
    assert "annotated images in common" in page


def test_one_set_of_images_is_compared_over_seeds(archive: Path, tmp_path: Path) -> None:
    study = small_study(archive, tmp_path / "study", budgets=["all"], seeds=[1, 2, 3])
    results = run(study, Fabricator(amounts=AMOUNTS))
    assert {(c.units, c.unit) for c in results.comparisons} == {(3, "seeds")}
    assert all(c.gain.low is not None for c in results.comparisons)
    table = (tmp_path / "study" / TABLE_FILE).read_text(encoding="utf-8")
    assert "| pscl | alloy test | 3 of 3 seeds |" in table
    page = write_report([tmp_path / "study"]).path.read_text(encoding="utf-8")
    assert "is better with 3 of 3 seeds." in page
    for text in (table, page):
        assert (
            "A pair is one seed with both methods, which says nothing about other annotated images." in text
        )
        assert "A pair is the same annotated images" not in text


def test_images_stay_the_units_where_one_of_them_is_scored_so_far(archive: Path, tmp_path: Path) -> None:
    study = small_study(archive, tmp_path / "study", seeds=[1, 2, 3])
    results = run(study, Fabricator(failing=("alloy t1", "alloy t2"), amounts=AMOUNTS))
    assert results.scored == 9
    assert {(c.units, c.unit, c.gain.low) for c in results.comparisons} == {(1, "images", None)}
    assert all("of 1 annotated images" in text for text in sentences(results) if "does best" in text)


def test_seeds_of_one_data_set_and_images_of_another_are_pairs(both: StudyConfig) -> None:
    entries = [{"name": "alloy"}, {"name": "bare", "references": ["bare/0"]}]
    study = StudyConfig.model_validate({**both.model_dump(), "datasets": entries, "seeds": [1, 2]})
    results = run(study, Fabricator(amounts=AMOUNTS))
    assert {(c.dataset, c.unit, c.units) for c in results.comparisons} == {
        ("alloy", "images", 3),
        ("bare", "seeds", 2),
        ("", "pairs", 5),
    }
    assert "over the mean of all headline scores" in sentences(results)[0]
    assert "is better with 5 of 5 pairs." in sentences(results)[0]
    assert "; where a data set has a single set of annotated images, it is one seed" in " ".join(
        notes(results)
    )


def test_results_that_do_not_tell_what_their_pairs_are_can_be_read(finished: Path, tmp_path: Path) -> None:
    tree = json.loads((finished / RESULTS_FILE).read_text(encoding="utf-8"))
    del tree["pools_without_own"]
    for line in tree["comparisons"]:
        del line["unit"]
    (tmp_path / RESULTS_FILE).write_text(json.dumps(tree))
    assert "is better with 3 of 3 pairs." in sentences(read_results(tmp_path))[0]


def test_data_sets_with_budgets_of_their_own_are_on_the_page_and_in_the_figure(both: StudyConfig) -> None:
    entries = [{"name": "alloy"}, {"name": "bare", "references": {"count": 2}, "budgets": ["square-8", 2]}]
    study = StudyConfig.model_validate({**both.model_dump(), "datasets": entries})
    results = run(study, Fabricator(amounts=AMOUNTS))
    first = {("alloy", "test", 1), ("alloy", "test_ood", 1), ("bare", "test", "square-8")}
    assert set(results.first_places) == first
    panels = study_panels(results, study.folder)
    assert {(panel.dataset, panel.split, panel.budget) for panel in panels} == first
    # No budget has all headline scores.
    said = [f"Against “{name}”, over {place}" for name in ("none", "simclr") for place in
            ("alloy test, budget 1,", "bare test, budget square-8,")]  # fmt: skip
    found = sentences(results)
    assert [text.startswith(start) for text, start in zip(found, said, strict=True)] == [True] * 4
    figure = paper_figure(results)
    assert figure is not None
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()]
    assert titles[:3] == ["alloy, test, budget 1", "alloy, test_ood, budget 1", "bare, test, budget square-8"]
    assert titles[3:5] == ["against none, alloy test, budget 1", "against none, bare test, budget square-8"]
    assert titles[-1] == "bare, test"
    page = write_report([study.folder]).path.read_text(encoding="utf-8")
    assert '<h3>bare <span class="badge">test</span> <span class="badge">budget square-8</span></h3>' in page


def test_overall_scores_are_those_of_the_first_budget_that_all_data_sets_have(both: StudyConfig) -> None:
    entries = [
        {"name": "alloy", "budgets": [1, 2]},
        {"name": "bare", "references": {"count": 2}, "budgets": [2]},
    ]
    study = StudyConfig.model_validate({**both.model_dump(), "datasets": entries})
    results = run(study, Fabricator(amounts=AMOUNTS))
    assert [text.split(", ")[1:3] for text in sentences(results)] == [
        ["over the mean of all headline scores", "budget 2"]
    ] * 2


def test_budgets_are_drawn_from_the_least_to_the_most_annotation(archive: Path, tmp_path: Path) -> None:
    budgets = ["all", "square-24", 2, "square-8", 1]
    results = run(small_study(archive, tmp_path / "study", budgets=budgets, methods=[NONE]), Fabricator())
    chart = budget_chart(results, "alloy", "test", "x")
    assert chart is not None
    words = re.findall(r"<text[^>]*>([^<]*)</text>", chart.svg)
    assert words[:5] == ["square-8", "square-24", "1", "2", "all"]


def test_purity_of_sampling_is_told_of_its_first_and_last_quarter(finished: Path) -> None:
    results = read_results(finished)
    # One trunk for each annotated image and seed.
    assert len(results.sampling) == 6
    assert {found.method for found in results.sampling} == {"pscl"}
    assert {found.references for found in results.sampling} == {("alloy/t0",), ("alloy/t1",), ("alloy/t2",)}
    assert {(found.first, found.last) for found in results.sampling} == {((0.25, None), (0.75, None))}
    assert "| pscl | alloy/t1 | 25% → 75% | - → - |" in (finished / TABLE_FILE).read_text(encoding="utf-8")
    page = write_report([finished]).path.read_text(encoding="utf-8")
    assert "25.0 % →" in page
    assert "75.0 %" in page


def test_purities_of_decoders_of_different_depth_stand_under_their_scale(
    finished: Path, tmp_path: Path
) -> None:
    results = read_results(finished)
    found = {"folder": "x", "references": (), "first": (0.1, 0.2), "last": (0.3, 0.4)}
    deep = {**found, "first": (0.5, 0.6, 0.7), "last": (0.5, 0.6, 0.7)}
    sampling = [Sampling(method="flat", **found), Sampling(method="deep", **deep)]  # type: ignore[arg-type]
    results = results.model_copy(update={"sampling": tuple(sampling)})
    lines = sampling_table(results).splitlines()
    assert lines[0].endswith("| 1/4 resolution | 1/2 resolution | full resolution |")
    assert lines[2] == "| flat | clusters | - | 10% → 30% | 20% → 40% |"
    assert lines[3] == "| deep | clusters | 50% → 50% | 60% → 60% | 70% → 70% |"
    (tmp_path / RESULTS_FILE).write_text(results.model_dump_json())
    page = write_report([tmp_path]).path.read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if ">flat</th><td>clusters</td>" in line)
    cells = re.findall(r"<td[^>]*>(.*?)</td>", row.partition(">flat<")[2].partition("</tr>")[0])
    assert [re.sub("<[^>]*>", "", cell) for cell in cells] == [
        "clusters", "\N{EN DASH}", "10.0 % → 30.0 %", "20.0 % → 40.0 %",
    ]  # fmt: skip


def test_the_table_states_the_pool_and_every_method(finished: Path) -> None:
    text = (finished / TABLE_FILE).read_text(encoding="utf-8")
    pool = "7 images, alloy 5 (train), other 2 (no split)"
    assert f"Pretraining pool of simclr: {pool}; no test" in text
    assert f"Pretraining pool of pscl: {pool}, less the annotated images of each pretraining; no test" in text
    assert "no test or validation image" in text
    for method in ("none", "simclr", "pscl"):
        assert len(re.findall(rf"^\| {method} \| 6 \|", text, re.MULTILINE)) == 2


def test_the_table_has_the_scores_that_settings_are_chosen_by(finished: Path) -> None:
    text = (finished / TABLE_FILE).read_text(encoding="utf-8")
    assert text.count("| worst reference | validation Dice |") == 2
    assert len(re.findall(r"^(\| [^|]+){4}\| 0\.500 ± 0\.000 \|", text, re.MULTILINE)) == 6
    page = write_report([finished]).path.read_text(encoding="utf-8")
    assert page.count("validation Dice") == 2


def test_figures_and_page_come_from_the_results_alone(finished: Path, tmp_path: Path) -> None:
    assert (finished / "figure.png").read_bytes().startswith(b"\x89PNG")
    drawing = (finished / "figure.svg").read_text(encoding="utf-8")
    assert "#01f" not in drawing
    first = write_report([finished], tmp_path / "a.html").path.read_text(encoding="utf-8")
    second = write_report([finished], tmp_path / "b.html").path.read_text(encoding="utf-8")
    assert first == second
    for word in ("pscl", "Against none", "Dice error removed", "alloy 5 (train)", "worst annotated image"):
        assert word in first
    # Made-up runs have no predictions: that is said, and no figure is empty.
    assert "cannot be read as a picture" in first
    assert not re.search(r"(src|href)=\"(?!data:|#)", first)


def test_masks_of_another_archive_than_was_scored_are_not_shown(finished: Path, tmp_path: Path) -> None:
    tree = json.loads((finished / RESULTS_FILE).read_text(encoding="utf-8"))
    for folder, words in (
        (tmp_path / "other", {"archive": "0" * 64}),
        (tmp_path / "gone", {"archive_path": str(tmp_path / "gone.h5")}),
    ):
        folder.mkdir()
        (folder / RESULTS_FILE).write_text(json.dumps(tree | words))
    text = write_report([tmp_path / "other"]).path.read_text(encoding="utf-8")
    said = f"The archive {tree['archive_path']} is not the one that was scored any more"
    # Once for each of the two splits.
    assert text.count(said) == 2
    assert "cannot be opened from here" in write_report([tmp_path / "gone"]).path.read_text(encoding="utf-8")
    assert said not in write_report([finished], tmp_path / "a.html").path.read_text(encoding="utf-8")


def test_words_of_a_stranger_stay_words_and_paths_stay_inside(finished: Path, tmp_path: Path) -> None:
    tree = json.loads((finished / RESULTS_FILE).read_text(encoding="utf-8"))
    tree["study"] = "<script>alert(1)</script>"
    secret = tmp_path / "secret" / "evaluation.json"
    secret.parent.mkdir()
    secret.write_text(next(finished.glob("finetune/*/evaluation.json")).read_text())
    for row in tree["rows"]:
        row["folder"] = "../secret"
    folder = tmp_path / "hostile"
    folder.mkdir()
    (folder / RESULTS_FILE).write_text(json.dumps(tree))
    text = write_report([folder]).path.read_text(encoding="utf-8")
    assert "<script>" not in text
    assert "is not in the study" in text


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"study": 3}', "\xff"])
def test_results_that_are_none_are_refused_in_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / RESULTS_FILE).write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match="is no result of a study"):
        write_report([tmp_path])
