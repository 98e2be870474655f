"""The numbers of the tables, and the words that say how far they can be trusted."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from pscl_hpc.models import ModelCard, SegmentationNet, save_segmentation
from pscl_hpc.models.unet import UNet, UNetConfig
from pscl_hpc.report.page import render
from pscl_hpc.report.story import comparison_sentence, headline
from pscl_hpc.results.runs import collect
from pscl_hpc.results.scores import CollectionScores, Comparison, Group, score_tables
from pscl_hpc.results.statistics import Stratum, compare

from .fabricated_runs import Alloy, configure, make_finetuning, make_pretraining


def comparison(*pairs: tuple[float, float]) -> Comparison:
    """Of pairs of Dice, pretrained and from scratch."""
    scratch, pretrained = (
        Group(start, 1, (), (None, None, None)) for start in ("from scratch", "pretrained by X")
    )
    return Comparison(scratch, pretrained, pairs, compare([Stratum(pairs)]).gain)


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
            for kind in ("finetune", "scratch")
        ]
        for i in range(2)
    ]
    assert [list(pair) for pair in found.pairs] == written
    gains = [after - before for after, before in written]
    assert found.gain is not None
    assert found.gain.value == pytest.approx(statistics.fmean(gains))
    reach = 12.706204736432095 * statistics.stdev(gains) / 2**0.5  # t of 0.975, 1 degree of freedom
    assert found.gain.high == pytest.approx(found.gain.value + reach)

    make_finetuning(tmp_path / "a", alloy, reference=0)
    make_finetuning(tmp_path / "b", alloy, reference=1, pretrained="elsewhere/trunk.safetensors")
    (unpaired,) = table_of(tmp_path).comparisons
    assert unpaired.pairs == ()
    assert unpaired.gain is None
    assert "cannot be compared" in comparison_sentence("alloy", unpaired, 5)


def test_two_pretrainings_of_one_method_are_told_apart(tmp_path: Path, alloy: Alloy) -> None:
    for name in ("p1", "p2"):
        run = make_pretraining(tmp_path / name, alloy, lines=3, inspection=False)
        make_finetuning(tmp_path / f"f-{name}", alloy, pretrained=str(run / "trunk.safetensors"))
    starts = [group.start for group in table_of(tmp_path).groups]
    assert starts == ["pretrained by PSCL-SimCLR", "pretrained by PSCL-SimCLR (p2)"]


def test_published_weights_are_not_called_from_scratch(tmp_path: Path, alloy: Alloy) -> None:
    configure(
        make_finetuning(tmp_path / "a", alloy), model={"name": "efficientnet-lite0", "init": "imagenet"}
    )
    configure(make_finetuning(tmp_path / "b", alloy), model={"name": "efficientnet-lite0", "init": "random"})
    assert sorted(group.began for group in table_of(tmp_path).groups) == [
        "from ImageNet weights",
        "from scratch",
    ]


def labels(table: CollectionScores) -> list[tuple[str, int]]:
    return [(group.label, len(group.rows)) for group in table.groups]


def test_trunks_of_one_name_in_different_places_are_told_apart(tmp_path: Path, alloy: Alloy) -> None:
    make_finetuning(tmp_path / "s", alloy)
    for name in ("one", "two"):
        make_finetuning(tmp_path / f"f-{name}", alloy, pretrained=f"/x/{name}/trunk")
        make_finetuning(tmp_path / f"g-{name}", alloy, pretrained=f"/x/{name}/trunk/trunk.safetensors")
    make_finetuning(tmp_path / "other", alloy, pretrained="/x/one/trunk/other.safetensors")
    assert labels(table_of(tmp_path)) == [
        ("from scratch", 1),
        ("pretrained (one/trunk)", 2),
        ("pretrained (other.safetensors)", 1),
        ("pretrained (two/trunk)", 2),
    ]


def test_a_relative_trunk_is_that_of_the_runs_own_working_directory(
    tmp_path: Path, alloy: Alloy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, method in (("w1", "pscl-simclr"), ("w2", "simclr")):
        run = make_pretraining(tmp_path / place / "runs/pre", alloy, lines=3, inspection=False)
        configure(run, run="runs/pre", method={"name": method})
        tuned = make_finetuning(tmp_path / place / "runs/ft", alloy, pretrained="runs/pre")
        configure(tuned, run="runs/ft")
    expected = [("pretrained by PSCL-SimCLR", 1), ("pretrained by SimCLR", 1)]
    monkeypatch.chdir(tmp_path)
    assert labels(table_of(tmp_path)) == expected
    # What lies here has the same relative path and is another run.
    monkeypatch.chdir(tmp_path / "w1")
    assert labels(table_of(tmp_path)) == expected


def test_seeds_are_no_references(tmp_path: Path, alloy: Alloy) -> None:
    amounts = {(1, ""): 0.9, (2, ""): 0.7, (1, "/x/trunk"): 0.3, (2, "/x/trunk"): 0.5, (3, "/x/trunk"): 0.1}
    dice = {}
    for (seed, trunk), amount in amounts.items():
        run = make_finetuning(tmp_path / f"{seed}{bool(trunk)}", alloy, pretrained=trunk, amount=amount)
        configure(run, seed=seed)
        dice[seed, trunk] = json.loads((run / "evaluation.json").read_text())["mean_dice"]
    table = table_of(tmp_path)
    (found,) = table.comparisons
    assert [list(pair) for pair in found.pairs] == [
        pytest.approx([(dice[1, trunk] + dice[2, trunk]) / 2 for trunk in ("/x/trunk", "")])
    ]
    text = comparison_sentence("alloy", found, table.images)
    assert "over 1 choice" in text
    assert "chance" in text
    assert found.scratch.mean_dice is not None
    assert found.scratch.mean_dice.std is None
    assert found.scratch.mean_dice.mean == pytest.approx((dice[1, ""] + dice[2, ""]) / 2)

    for trunk in ("", "/x/trunk"):
        make_finetuning(tmp_path / f"other{bool(trunk)}", alloy, reference=1, pretrained=trunk)
        configure(tmp_path / f"other{bool(trunk)}", seed=1)
    (group, _) = table_of(tmp_path).groups
    assert (len(group.rows), group.references) == (3, 2)
    assert group.mean_dice is not None
    assert group.mean_dice.count == 2
    text = render(collect([tmp_path]))
    assert "mean ± std, 3 runs of 1 annotated image, seeds averaged" in text


SEMI = {"name": "ideal", "weight": 1.0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"square": 16}, ("square of 16 pixels", "whole annotation")),
        ({"semi_supervised": SEMI}, ("semi-supervised", "supervised")),
        ({"schedule": {"steps": 900}}, ("schedule.steps 900", "schedule.steps 300")),
        ({"validation_split": ""}, ("validation_split ", "validation_split val")),
    ],
)
def test_runs_of_different_settings_are_neither_averaged_nor_paired(
    tmp_path: Path, alloy: Alloy, changes: dict[str, Any], words: tuple[str, str]
) -> None:
    make_finetuning(tmp_path / "a", alloy, amount=0.3)
    configure(make_finetuning(tmp_path / "b", alloy, amount=0.9), **changes)
    table = table_of(tmp_path)
    assert sorted(labels(table)) == sorted((f"from scratch, {word}", 1) for word in words)

    make_finetuning(tmp_path / "c", alloy, pretrained="/x/trunk", amount=0.3)
    table = table_of(tmp_path)
    (found,) = table.comparisons
    assert [row.run.label for row in (*found.scratch.rows, *found.pretrained.rows)] == ["a", "c"]
    assert [row.run.label for group in table.alone for row in group.rows] == ["b"]
    head = headline(collect([tmp_path]), [table])
    assert f"pretrained (trunk), {words[1]} (+0.000)" in head.sentences[1]
    assert f"from scratch, {words[0]}, 1 run" in head.sentences[2]
    assert len(head.tiles) == 2


def test_what_does_not_decide_scores_makes_no_groups(tmp_path: Path, alloy: Alloy) -> None:
    aside: list[dict[str, Any]] = [
        {"runtime": {"threads": 1}, "log": {"every_steps": 3}, "checkpoint": {"keep": 5}, "run": "elsewhere"},
        # A key that has no effect from scratch.
        {"encoder_lr_scale": 0.5},
    ]
    for place, changes in enumerate(aside):
        configure(make_finetuning(tmp_path / str(place), alloy), **changes)
    configure(make_finetuning(tmp_path / "p", alloy, pretrained="/x/trunk"), model={"widths": [4, 8]})
    table = table_of(tmp_path)
    assert labels(table) == [("from scratch", 2), ("pretrained (trunk)", 1)]
    assert len(table.comparisons) == 1


def test_a_network_is_what_its_weights_say(tmp_path: Path, alloy: Alloy) -> None:
    def save(run: Path, widths: tuple[int, ...]) -> None:
        net = SegmentationNet(UNet(UNetConfig(widths=widths)), 4)
        save_segmentation(run / "model.safetensors", net, ModelCard(net.trunk.config, alloy.classes))

    scratch = make_finetuning(tmp_path / "s", alloy)
    tuned = make_finetuning(tmp_path / "p", alloy, pretrained="/x/trunk")
    save(scratch, (4, 8))
    save(tuned, (4, 8))
    assert len(table_of(tmp_path).comparisons) == 1
    save(tuned, (4, 16))
    table = table_of(tmp_path)
    assert table.comparisons == ()
    assert [group.settings for group in table.groups] == ["model.widths [4, 8]", "model.widths [4, 16]"]


def test_many_different_settings_are_counted_and_never_confused(tmp_path: Path, alloy: Alloy) -> None:
    common = {"square": 16, "batch_size": 3, "validate_every": 7}
    for name, last in (("a", {}), ("b", {"flip": False}), ("c", {"flip": False, "rotate": False})):
        configure(make_finetuning(tmp_path / name, alloy), **(common | last if last else {}))
    found = [group.label for group in table_of(tmp_path).groups]
    assert len(set(found)) == 3
    assert sum("square of 16 pixels" in label for label in found) == 2
    assert sum("rotate False" in label for label in found) == 1


def test_groups_that_differ_in_a_setting_of_one_alone_have_different_labels(
    tmp_path: Path, alloy: Alloy
) -> None:
    make_finetuning(tmp_path / "a", alloy)
    for name in ("b", "c"):
        configure(make_finetuning(tmp_path / name, alloy), **{f"unknown_{name}": 1})
    assert len({label for label, _ in labels(table_of(tmp_path))}) == 3


def test_runs_scored_on_different_images_are_not_paired(tmp_path: Path, alloy: Alloy) -> None:
    make_finetuning(tmp_path / "a", alloy)
    run = make_finetuning(tmp_path / "b", alloy, pretrained="/x/trunk")
    tree = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").write_text(json.dumps(tree | {"archive": "c0ffee" * 10}))
    table = table_of(tmp_path)
    assert table.comparisons == ()
    assert table.groups[1].settings == "scored on archive c0ffeec0"


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ({"tta": "scales"}, "test-time augmentation"),
        ({"adapt": 0.5}, "adaptation to each image"),
        ({"correct_shading": True}, "shading correction"),
        ({"unweighted": True}, "class weights taken out"),
        ({"tta": "scales", "adapt": 0.5}, "test-time augmentation and adaptation to each image"),
    ],
)
def test_runs_scored_by_other_ways_of_inference_are_not_paired(
    tmp_path: Path, alloy: Alloy, way: dict[str, object], words: str
) -> None:
    make_finetuning(tmp_path / "a", alloy)
    run = make_finetuning(tmp_path / "b", alloy, pretrained="/x/trunk")
    tree = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").write_text(json.dumps(tree | way))
    table = table_of(tmp_path)
    assert table.comparisons == ()
    assert {group.settings for group in table.groups} == {f"scored with {words}", "scored plainly"}
    notes = {found.path.name: found.notes for found in collect([tmp_path])}
    assert f"Scored with {words}." in notes["b"]
    assert not any("Scored" in note for note in notes["a"])


def rescore(run: Path, splits: dict[str, str], primary: str) -> None:
    """Give the scores of split ``splits[name]`` the name ``name``."""
    path = run / "evaluation.json"
    tree = json.loads(path.read_text())
    tree["splits"] = {name: tree["splits"][split] for name, split in splits.items()}
    path.write_text(json.dumps(tree | {"split": primary}))


def test_a_split_has_one_table_whatever_stands_for_its_runs(tmp_path: Path, alloy: Alloy) -> None:
    make_finetuning(tmp_path / "a", alloy)
    rescore(tmp_path / "a", {"test": "test", "val": "test"}, "test")
    make_finetuning(tmp_path / "b", alloy, pretrained="/x/trunk")
    rescore(tmp_path / "b", {"val": "test"}, "val")
    found = collect([tmp_path])
    tables = score_tables(found)
    assert [(table.split, table.primary, len(table.groups)) for table in tables] == [
        ("test", True, 1),
        ("val", False, 2),
    ]
    assert len(headline(found, tables).tiles) == 1


def test_validation_images_are_not_called_test_images(tmp_path: Path, alloy: Alloy) -> None:
    make_finetuning(tmp_path / "a", alloy)
    rescore(tmp_path / "a", {"val": "test"}, "val")
    found = collect([tmp_path])
    head = headline(found, score_tables(found))
    assert head.tiles[0].note == "1 run, 5 val images"
    text = render(found)
    assert "5 val images" in text
    assert "worst test image" not in text


def test_one_pair_is_called_chance() -> None:
    text = comparison_sentence("alloy", comparison((0.6, 0.5)), 7)
    assert "0.500 from scratch, 0.600 pretrained by X (+0.100), scored on 7 images" in text
    assert "chance" in text
    assert "interval" not in text


def test_a_difference_whose_interval_holds_zero_may_be_chance() -> None:
    noisy = comparison_sentence("alloy", comparison((0.7, 0.5), (0.35, 0.5), (0.5, 0.5)), 7)
    assert "1 of 3" in noisy
    assert "chance" in noisy
    clear = comparison_sentence("alloy", comparison((0.7, 0.5), (0.68, 0.5)), 7)
    assert "2 of 2, 95% interval +0.063 to +0.317" in clear
    assert "chance" not in clear


def test_a_loss_is_told_as_a_loss() -> None:
    text = comparison_sentence("alloy", comparison((0.5, 0.6), (0.53, 0.62)), 7)
    assert "(\N{MINUS SIGN}0.095)" in text
    assert "0 of 2" in text


def test_the_headline_counts_what_was_done(runs: Path) -> None:
    found = collect([runs])
    head = headline(found, score_tables(found))
    assert head.title == "Pretraining and segmentation from one annotated image"
    assert len(head.sentences) == 3
    assert "PSCL-SimCLR for 1\N{NARROW NO-BREAK SPACE}200 steps" in head.sentences[0]
    assert "4 fine-tuning runs, each from 1 annotated image." in head.sentences[1]
    assert "5 images over 2 choices" in head.sentences[2]
    assert len(head.tiles) == 1
    assert not head.warnings


def test_runs_without_a_partner_claim_no_gain(runs: Path) -> None:
    found = collect([runs / "finetune-0"])
    head = headline(found, score_tables(found))
    assert "compare" in head.sentences[-1]
    assert head.tiles[0].unit == ""


def test_runs_that_differ_in_much_are_not_called_the_only_ones(tmp_path: Path, alloy: Alloy) -> None:
    make_finetuning(tmp_path / "a", alloy)
    configure(make_finetuning(tmp_path / "b", alloy), schedule={"steps": 7})
    found = collect([tmp_path])
    for sentence in headline(found, score_tables(found)).sentences[-2:]:
        assert "nothing on this page" not in sentence
        assert "more than its pretraining" in sentence


def test_an_absent_class_stays_unknown(tmp_path: Path, alloy: Alloy) -> None:
    run = make_finetuning(tmp_path / "run", alloy)
    path = run / "evaluation.json"
    tree = json.loads(path.read_text())
    tree["splits"]["test"]["dice"]["defect"] = None
    path.write_text(json.dumps(tree))
    table = table_of(tmp_path)
    (group,) = table.groups
    assert group.spreads[table.classes.index("defect")] is None
    assert "in no mask" in render(collect([tmp_path]))


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
