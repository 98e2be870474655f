"""The page of runs that the other parts of the package really wrote: nothing is missing, damaged or misread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pscl_hpc.config import resolve_config
from pscl_hpc.pretraining import pretrain
from pscl_hpc.pretraining.config import PretrainConfig
from pscl_hpc.report import write_report
from pscl_hpc.report.curves import run_charts
from pscl_hpc.report.inspection import image_figures
from pscl_hpc.report.predictions import prediction_panels
from pscl_hpc.results.runs import collect
from pscl_hpc.results.scores import score_tables
from pscl_hpc.segmentation import evaluate, finetune
from pscl_hpc.segmentation.config import FinetuneConfig

from .fabricated_runs import Alloy, make_alloy

METHODS = {
    "pscl": {"name": "pscl-simclr", "templates_per_class": 2},
    "simclr": {"name": "simclr"},
}


@pytest.fixture(scope="module")
def alloy(tmp_path_factory: pytest.TempPathFactory) -> Alloy:
    return make_alloy(tmp_path_factory.mktemp("alloy"), tests=2, references=2, size=(64, 72))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, alloy: Alloy) -> Path:
    """Two pretrainings by different methods, and a fine-tuning from each and from scratch."""
    folder = tmp_path_factory.mktemp("trained")
    common: dict[str, Any] = {
        "data": {"archive": str(alloy.archive)},
        "model": {"widths": [4, 8, 8, 16]},
        "schedule": {"steps": 2},
        "log": {"every_steps": 1},
        "runtime": {"device": "cpu", "threads": 1},
    }
    for name, method in METHODS.items():
        chosen: dict[str, Any] = dict(method)
        if name == "pscl":
            chosen["reference"] = {"ids": [alloy.references[0]]}
        tree = {
            **common,
            "run": str(folder / name),
            "method": chosen,
            "views": {"size": [32, 32]},
            "batch_size": 2,
        }
        config = resolve_config({"kind": "pretrain", **tree}, source="test")
        assert isinstance(config, PretrainConfig)
        pretrain(config)
    for name in ("", *METHODS):
        run = folder / f"finetune-{name or 'scratch'}"
        tree = {
            **common,
            "run": str(run),
            "references": [alloy.references[0]],
            "crop": [32, 32],
            "batch_size": 2,
        }
        tree["pretrained"] = str(folder / name) if name else ""
        config = resolve_config({"kind": "finetune", **tree}, source="test")
        assert isinstance(config, FinetuneConfig)
        finetune(config)
        evaluate(run)
    return folder


def test_everything_is_found_and_nothing_is_missing(trained: Path, alloy: Alloy) -> None:
    runs = collect([trained])
    assert [(run.label, run.kind, run.status) for run in runs] == [
        ("pscl", "pretrain", "done"),
        ("simclr", "pretrain", "done"),
        ("finetune-pscl", "finetune", "done"),
        ("finetune-scratch", "finetune", "done"),
        ("finetune-simclr", "finetune", "done"),
    ]
    assert not any(run.notes or run.damage for run in runs)

    with_patches, without = (image_figures(run.inspection) for run in runs[:2] if run.inspection is not None)
    assert [scale.name for scale in with_patches[0].scales] == [
        "1/4 resolution",
        "1/2 resolution",
        "full resolution",
    ]
    assert with_patches[0].reference
    assert with_patches[0].scales[2].markers
    assert without
    assert not any(scale.markers for figure in without for scale in figure.scales)
    titles = {chart.title for chart in run_charts(runs[0], "p")}
    assert {"Losses", "Similarity of patches", "Templates", "Learning rate", "Images per second"} <= titles

    (table,) = score_tables(runs)
    assert [group.start for group in table.groups] == [
        "from scratch",
        "pretrained by PSCL-SimCLR",
        "pretrained by SimCLR",
    ]
    (panel,) = prediction_panels([table])
    assert panel.notes == []
    assert {figure.id for figure in panel.figures} == set(alloy.tests)
    assert all(answer.errors for figure in panel.figures for answer in figure.answers)


def test_the_page_is_written(trained: Path) -> None:
    done = write_report([trained])
    assert (done.runs, done.damage) == (5, ())
    assert "Incomplete" not in done.path.read_text(encoding="utf-8")
