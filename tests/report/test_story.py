"""The numbers of the tables, and the words that say how far they can be trusted."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from pscl_hpc.report.collect import collect
from pscl_hpc.report.scores import CollectionScores, Comparison, Group, score_tables
from pscl_hpc.report.story import comparison_sentence, headline

from .fabricated_runs import Alloy, make_finetuning, make_pretraining


def comparison(*pairs: tuple[float, float]) -> Comparison:
    empty = Group("from scratch", False, 1, (), (None, None, None))
    return Comparison(empty, Group("pretrained by X", True, 1, (), (None, None, None)), pairs, "")


def table_of(folder: Path) -> CollectionScores:
    (table,) = score_tables(collect([folder]))
    return table


def test_groups_hold_mean_deviation_and_worst_of_the_files(runs: Path) -> None:
    table = table_of(runs)
    assert [(group.start, len(group.rows)) for group in table.groups] == [
        ("from scratch", 2),
        ("pretrained by PSCL-SimCLR", 2),
    ]
    for group, prefix in zip(table.groups, ("scratch", "finetune"), strict=True):
        files = [json.loads((runs / f"{prefix}-{i}" / "evaluation.json").read_text()) for i in range(2)]
        values = [file["mean_dice"] for file in files]
        found = group.mean_dice
        assert found is not None
        assert found.mean == pytest.approx(statistics.fmean(values))
        assert found.std == pytest.approx(statistics.stdev(values))
        assert found.worst == min(values)
        particle = group.spreads[table.classes.index("particle")]
        assert particle is not None
        assert particle.mean == pytest.approx(statistics.fmean(file["dice"]["particle"] for file in files))


def test_pairs_share_their_reference_and_seed(runs: Path, tmp_path: Path, alloy: Alloy) -> None:
    (found,) = table_of(runs).comparisons
    written = [
        [
            json.loads((runs / f"{kind}-{i}" / "evaluation.json").read_text())["mean_dice"]
            for kind in ("scratch", "finetune")
        ]
        for i in range(2)
    ]
    assert [list(pair) for pair in found.pairs] == written
    assert found.gains == pytest.approx([after - before for before, after in written])

    make_finetuning(tmp_path / "a", alloy, reference=0)
    make_finetuning(tmp_path / "b", alloy, reference=1, pretrained="elsewhere/trunk.safetensors")
    (strangers,) = table_of(tmp_path).comparisons
    assert strangers.pairs == ()
    assert "cannot be compared" in comparison_sentence("alloy", strangers, 5)


def test_two_pretrainings_of_one_method_are_told_apart(tmp_path: Path, alloy: Alloy) -> None:
    for name in ("p1", "p2"):
        run = make_pretraining(tmp_path / name, alloy, lines=3, inspection=False)
        make_finetuning(tmp_path / f"f-{name}", alloy, pretrained=str(run / "trunk.safetensors"))
    starts = [group.start for group in table_of(tmp_path).groups]
    assert starts == ["pretrained by PSCL-SimCLR", "pretrained by PSCL-SimCLR (p2)"]


def test_one_pair_is_called_chance() -> None:
    text = comparison_sentence("alloy", comparison((0.5, 0.6)), 7)
    assert "0.500 from scratch, 0.600 pretrained by X (+0.100), scored on 7 images with 1 reference" in text
    assert "cannot tell an effect from chance" in text


def test_a_small_difference_is_called_smaller_than_its_spread() -> None:
    noisy = comparison_sentence("alloy", comparison((0.5, 0.7), (0.5, 0.35), (0.5, 0.5)), 7)
    assert "better on 1 of 3" in noisy
    assert "smaller than its own spread" in noisy
    clear = comparison_sentence("alloy", comparison((0.5, 0.7), (0.5, 0.68)), 7)
    assert "better on 2 of 2" in clear
    assert "spread" not in clear


def test_a_loss_is_told_as_a_loss() -> None:
    text = comparison_sentence("alloy", comparison((0.6, 0.5), (0.62, 0.53)), 7)
    assert "(\N{MINUS SIGN}0.095)" in text
    assert "better on 0 of 2" in text


def test_the_headline_counts_what_was_done(runs: Path) -> None:
    found = collect([runs])
    head = headline(found, score_tables(found))
    assert head.title == "Pretraining and segmentation from one annotated image"
    assert len(head.sentences) == 3
    assert "PSCL-SimCLR for 1\N{NARROW NO-BREAK SPACE}200 steps" in head.sentences[0]
    assert "4 fine-tuning runs, each from 1 annotated image." in head.sentences[1]
    assert "5 images with 2 references" in head.sentences[2]
    assert len(head.tiles) == 1
    assert not head.warnings


def test_runs_without_a_partner_claim_no_gain(runs: Path) -> None:
    found = collect([runs / "finetune-0"])
    head = headline(found, score_tables(found))
    assert "Nothing to compare it with" in head.sentences[-1]
    assert head.tiles[0].unit == ""


def test_an_absent_class_stays_unknown(tmp_path: Path, alloy: Alloy) -> None:
    run = make_finetuning(tmp_path / "run", alloy)
    path = run / "evaluation.json"
    tree = json.loads(path.read_text())
    tree["splits"]["test"]["dice"]["defect"] = None
    path.write_text(json.dumps(tree))
    table = table_of(tmp_path)
    (group,) = table.groups
    assert group.spreads[table.classes.index("defect")] is None
    assert "in no mask" in table.chart


def test_each_scored_split_has_its_table_and_only_the_primary_one_a_headline(
    tmp_path: Path, alloy: Alloy
) -> None:
    run = make_finetuning(tmp_path / "run", alloy)
    path = run / "evaluation.json"
    tree = json.loads(path.read_text())
    tree["splits"]["test_ood"] = tree["splits"]["test"]
    path.write_text(json.dumps(tree))
    found = collect([tmp_path])
    tables = score_tables(found)
    assert [(table.split, table.primary) for table in tables] == [("test", True), ("test_ood", False)]
    assert len(headline(found, tables).tiles) == 1
