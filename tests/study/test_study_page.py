"""The figures and the page of a study, which come from its results alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pscl_hpc.errors import UserError
from pscl_hpc.report import write_report
from pscl_hpc.report.predictions import study_panels
from pscl_hpc.report.study_figures import budget_panel, paper_figure
from pscl_hpc.report.study_text import sentences
from pscl_hpc.results.study import RESULTS_FILE
from pscl_hpc.study.config import StudyConfig

from .material import AMOUNTS, NONE, Fabricator, run, small_study


def test_data_sets_with_budgets_of_their_own_are_on_the_page_and_in_the_figure(both: StudyConfig) -> None:
    entries = [{"name": "alloy"}, {"name": "bare", "references": {"count": 2}, "budgets": ["square-8", 2]}]
    study = StudyConfig.model_validate({**both.model_dump(), "datasets": entries})
    results = run(study, Fabricator(amounts=AMOUNTS))
    first = {("alloy", "test", 1), ("alloy", "test_ood", 1), ("bare", "test", "square-8")}
    assert set(results.first_places) == first
    panels = study_panels(results, study.folder)
    assert {(panel.name, panel.split, panel.budget) for panel in panels} == {
        (name, split, f"budget {budget}") for name, split, budget in first
    }
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


def test_budgets_are_drawn_from_the_least_to_the_most_annotation(archive: Path, tmp_path: Path) -> None:
    budgets = ["all", "square-24", 2, "square-8", 1]
    results = run(small_study(archive, tmp_path / "study", budgets=budgets, methods=[NONE]), Fabricator())
    panel = budget_panel(results, "alloy", "test")
    assert panel is not None
    words = re.findall(r"<text[^>]*>([^<]*)</text>", panel.chart("x").svg)
    assert words[:5] == ["square-8", "square-24", "1", "2", "all"]


def test_figures_and_page_come_from_the_results_alone(finished: Path, tmp_path: Path) -> None:
    assert (finished / "figure.png").read_bytes().startswith(b"\x89PNG")
    drawing = (finished / "figure.svg").read_text(encoding="utf-8")
    assert "#01f" not in drawing
    first = write_report([finished], tmp_path / "a.html").path.read_text(encoding="utf-8")
    second = write_report([finished], tmp_path / "b.html").path.read_text(encoding="utf-8")
    assert first == second
    for word in ("pscl", "Against none", "Dice error removed", "alloy 5 (train)", "worst annotated image"):
        assert word in first
    # Made-up runs have no predictions.
    assert "no predicted masks" in first
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
    said = f"The archive {tree['archive_path']} is not the archive that was scored"
    # Once for each of the two splits.
    assert text.count(said) == 2
    assert f"{tmp_path / 'gone.h5'} cannot be opened" in write_report([tmp_path / "gone"]).path.read_text(
        "utf-8"
    )
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
    with pytest.raises(UserError, match=RESULTS_FILE):
        write_report([tmp_path])
