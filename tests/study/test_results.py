"""What a study's results say of made-up runs: rows, means, comparisons and their units, tables."""

from __future__ import annotations

import json
import math
import re
import statistics
from pathlib import Path

import pytest

from pscl_hpc.errors import UserError
from pscl_hpc.report import write_report
from pscl_hpc.report.study_text import TABLE_FILE, notes, sampling_table, sentences
from pscl_hpc.results.evaluation import read_evaluation
from pscl_hpc.results.runs import collect
from pscl_hpc.results.scores import score_tables
from pscl_hpc.results.study import RESULTS_FILE, Sampling, read_results
from pscl_hpc.study.config import StudyConfig

from .material import AMOUNTS, NONE, Fabricator, run, small_study


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
    assert all("of 1 annotated images" in text for text in sentences(results) if "is best" in text)


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


def test_purity_of_sampling_is_told_of_its_first_and_last_quarter(finished: Path, tmp_path: Path) -> None:
    results = read_results(finished)
    # One trunk for each annotated image and seed.
    assert len(results.sampling) == 6
    assert {found.method for found in results.sampling} == {"pscl"}
    assert {found.references for found in results.sampling} == {("alloy/t0",), ("alloy/t1",), ("alloy/t2",)}
    assert {(found.first, found.last) for found in results.sampling} == {((0.25, None), (0.75, None))}
    assert "| pscl | alloy/t1 | 25% → 75% | - → - |" in (finished / TABLE_FILE).read_text(encoding="utf-8")
    page = write_report([finished], tmp_path / "page.html").path.read_text(encoding="utf-8")
    assert "25% → 75%" in page


def test_purities_of_decoders_of_different_depth_stand_under_their_scale(
    finished: Path, tmp_path: Path
) -> None:
    results = read_results(finished)
    found = {"folder": "x", "references": (), "first": (0.1, 0.2), "last": (0.3, 0.4)}
    deep = {**found, "first": (0.5, 0.6, 0.7), "last": (0.5, 0.6, 0.7)}
    sampling = [Sampling(method="flat", **found), Sampling(method="deep", **deep)]  # type: ignore[arg-type]
    results = results.model_copy(update={"sampling": tuple(sampling)})
    lines = sampling_table(results).markdown().splitlines()
    assert lines[0].endswith("| 1/4 resolution | 1/2 resolution | full resolution |")
    assert lines[2] == "| flat | clusters | - | 10% → 30% | 20% → 40% |"
    assert lines[3] == "| deep | clusters | 50% → 50% | 60% → 60% | 70% → 70% |"
    (tmp_path / RESULTS_FILE).write_text(results.model_dump_json())
    page = write_report([tmp_path]).path.read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if ">flat</th><td>clusters</td>" in line)
    assert re.findall(r"<td>(.*?)</td>", row) == [
        "clusters", "-", "10% → 30%", "20% → 40%",
    ]  # fmt: skip


def test_the_table_states_the_pool_and_every_method(finished: Path) -> None:
    text = (finished / TABLE_FILE).read_text(encoding="utf-8")
    pool = "7 images, alloy 5 (train), other 2 (no split)"
    assert f"Pretraining pool of simclr: {pool}; no test" in text
    assert f"Pretraining pool of pscl: {pool}, less the annotated images of each pretraining; no test" in text
    assert "no test or validation image" in text
    for method in ("none", "simclr", "pscl"):
        assert len(re.findall(rf"^\| {method} \| 6 \|", text, re.MULTILINE)) == 2


def test_the_error_of_the_phase_fraction(finished: Path, tmp_path: Path) -> None:
    results = read_results(finished)
    for row in results.rows:
        if row.method == "simclr":  # evaluated without confusion matrices
            assert row.fraction_error is None
            continue
        evaluation = json.loads((finished / row.folder / "evaluation.json").read_text())
        expected = dict.fromkeys(evaluation["classes"][1:], 0.0)
        images = evaluation["splits"][row.split]["per_image"]
        for image in images:
            matrix = image["confusion"]
            pixels = sum(map(sum, matrix))
            for index, name in enumerate(evaluation["classes"]):
                if index:
                    predicted, annotated = sum(line[index] for line in matrix), sum(matrix[index])
                    expected[name] += abs(predicted - annotated) / pixels / len(images)
        assert row.fraction_error == pytest.approx(expected)
    lines = {line.method: line for line in results.table if line.split == "test"}
    assert lines["simclr"].fraction_error is None
    rows = [row.fraction_error for row in results.rows if (row.method, row.split) == ("pscl", "test")]
    means = [statistics.fmean(errors.values()) for errors in rows if errors]
    assert len(means) == 6
    assert lines["pscl"].fraction_error is not None
    assert lines["pscl"].fraction_error.mean == pytest.approx(statistics.fmean(means))
    text = (finished / TABLE_FILE).read_text(encoding="utf-8")
    assert text.count("error of the phase fraction, %") == 2
    assert len(re.findall(r"^\| simclr .*\| - \|$", text, re.MULTILINE)) == 2
    shown = f"| {100 * statistics.fmean(means):.1f} ± {100 * statistics.stdev(means):.1f} |"
    assert shown in text


def test_a_confusion_matrix_of_another_size_is_damage(finished: Path, tmp_path: Path) -> None:
    row = next(row for row in read_results(finished).rows if row.method == "pscl")
    content = json.loads((finished / row.folder / "evaluation.json").read_text())
    content["splits"]["test"]["per_image"][0]["confusion"] = [[1, 2], [3, 4]]
    (tmp_path / "evaluation.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="confusion"):
        read_evaluation(tmp_path / "evaluation.json")


def test_the_table_has_the_scores_that_settings_are_chosen_by(finished: Path, tmp_path: Path) -> None:
    text = (finished / TABLE_FILE).read_text(encoding="utf-8")
    assert text.count("| validation Dice |") == 2
    assert len(re.findall(r"^(\| [^|]+){4}\| 0\.500 ± 0\.000 \|", text, re.MULTILINE)) == 6
    page = write_report([finished], tmp_path / "page.html").path.read_text(encoding="utf-8")
    assert page.count("validation Dice") == 2


def test_a_report_of_the_runs_and_the_study_compare_them_alike(archive: Path, tmp_path: Path) -> None:
    methods = [NONE, {"name": "simclr", "pretrain": {"method": {"name": "simclr"}}}]
    results = run(small_study(archive, tmp_path / "study", methods=methods), Fabricator(amounts=AMOUNTS))
    tables = {table.split: table for table in score_tables(collect([tmp_path / "study"]))}
    for split in ("test", "test_ood"):
        (study,) = (c for c in results.comparisons if (c.method, c.split) == ("simclr", split))
        (report,) = tables[split].comparisons
        assert report.gain == study.gain
        assert len(report.pairs) == study.units == 3
        means = [group.mean_dice.mean for group in tables[split].groups if group.mean_dice]
        assert means == pytest.approx(
            [line.mean_dice.mean for line in results.table if line.split == split and line.mean_dice]
        )
