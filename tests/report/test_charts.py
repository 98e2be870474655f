"""Charts: well-formed, the same bytes every time, coloured by the page, true to the data."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from pscl_hpc.report.charts import BINS, DotRow, Series, curves, dots, slopes
from pscl_hpc.report.curves import run_charts, scale_name
from pscl_hpc.results.runs import RunData, collect


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns:xlink="x" ', 1))


def line(count: int, slot: int = 0) -> Series:
    return Series("a", list(range(count)), [float(np.sin(i / 9)) for i in range(count)], slot)


def drawn() -> dict[str, str]:
    rows = [DotRow("<i>$x_2$ & long name of a class", ((0.5, 0.7), (0.9,))), DotRow("b", ((), ()))]
    return {
        "curves": curves("c", [line(30), line(2000, 1)], title='loss <"&', restarts=[12]),
        "dots": dots("d", rows, title="t"),
        "slopes": slopes("s", [(0.2, 0.4), (0.5, 0.3)], ("from scratch", "<b>"), title="t"),
    }


@pytest.mark.parametrize("kind", ["curves", "dots", "slopes"])
def test_a_chart_is_well_formed_and_repeatable(kind: str) -> None:
    svg = drawn()[kind]
    root = parsed(svg)
    assert root.get("role") == "img"
    assert root.get("viewBox")
    assert root.get("width") is None
    assert svg == drawn()[kind]
    assert not re.search(r"http|<style|<metadata|<!", svg)


@pytest.mark.parametrize("kind", ["curves", "dots", "slopes"])
def test_all_colours_come_from_the_page(kind: str) -> None:
    svg = drawn()[kind]
    assert re.search(r"(fill|stroke): var\(--s[012]\)", svg)
    assert not re.search(r"(?:fill|stroke): #(?!000000\b)[0-9a-f]{6}", svg)


def test_ids_of_two_charts_differ_and_every_reference_resolves() -> None:
    texts = [curves(name, [line(30), line(9, 1)], title="t") for name in ("one", "two")]
    ids = [set(re.findall(r' id="([^"]+)"', text)) for text in texts]
    assert ids[0]
    assert not ids[0] & ids[1]
    for text, own in zip(texts, ids, strict=True):
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', text)) == own


def test_text_is_text_and_formulas_stay_as_written() -> None:
    words = [element.text for element in parsed(drawn()["dots"]).iter() if element.tag.endswith("text")]
    assert "<i>$x_2$ & long name of…" in words
    assert "in no mask" in words
    assert parsed(drawn()["curves"]).get("aria-label") == 'loss <"&'


@pytest.mark.parametrize("title", [r"steel\1", r"steel\gamma", r"a\g<0>"])
def test_a_backslash_in_a_title_stays_as_written(title: str) -> None:
    assert parsed(dots("d", [DotRow("a", ((0.5,),))], title=title)).get("aria-label") == title


def test_a_long_curve_is_thinned_and_keeps_its_range() -> None:
    svg = curves("c", [line(50_000)], title="t")
    assert len(svg) < 60_000
    assert len(re.findall(r"L ", svg)) < 4 * BINS
    # The band of a thinned curve is a filled path, absent from a short one.
    assert "opacity: 0.14" in svg
    assert "opacity: 0.14" not in curves("c", [line(BINS)], title="t")


def test_unknown_values_leave_no_point() -> None:
    with_gap = Series("a", [1, 2, 3], [0.1, float("nan"), 0.3], 0)
    without = Series("a", [1, 3], [0.1, 0.3], 0)
    assert curves("c", [with_gap], title="t") == curves("c", [without], title="t")
    assert parsed(curves("c", [Series("a", [1], [float("nan")], 0)], title="t")) is not None


def test_every_logged_number_finds_a_chart(runs: Path) -> None:
    run = collect([runs / "pretrain"])[0]
    charts = {chart.title: chart for chart in run_charts(run, "p")}
    assert list(charts) == [
        "Losses",
        "Similarity of patches",
        "Purity of sampled patches",
        "Templates",
        "Gradient norm",
        "Learning rate",
        "Images per second",
        "Memory in MB",
    ]
    labels = [entry.label for entry in charts["Losses"].legend]
    assert labels == ["total", "1/4 resolution", "1/2 resolution", "full resolution", "whole image"]
    # A scale has one colour everywhere.
    assert [entry.slot for entry in charts["Purity of sampled patches"].legend] == [0, 1, 2]
    assert all("restart" in chart.svg for chart in charts.values())


def test_terms_of_other_methods_show_up() -> None:
    lines = [
        {"step": s, "time": 0.0, "queue/age": s * 2.0, "moco/loss": 1.0 / s, "note": "x"} for s in (1, 2)
    ]
    run = RunData(Path("r"), "r", "pretrain", "done", {}, {}, "", lines)
    charts = run_charts(run, "p")
    assert [chart.title for chart in charts] == ["Losses", "Age"]


def test_validation_of_finetuning_is_split_into_dice_and_the_rest(runs: Path) -> None:
    charts = {chart.title: chart for chart in run_charts(collect([runs / "scratch-0"])[0], "f")}
    assert [e.label for e in charts["Losses"].legend] == ["total", "cross entropy", "Dice loss"]
    assert [e.label for e in charts["Dice on validation images"].legend] == [
        "mean",
        "network",
        "particle",
        "defect",
    ]
    assert [e.label for e in charts["Learning rate"].legend] == ["decoder and head", "encoder"]
    assert [e.label for e in charts["IoU and pixel accuracy on validation images"].legend] == [
        "mean IoU",
        "pixel accuracy",
    ]


def test_scales_are_named_by_their_resolution() -> None:
    assert [scale_name(index, 4) for index in range(4)] == [
        "1/8 resolution",
        "1/4 resolution",
        "1/2 resolution",
        "full resolution",
    ]
