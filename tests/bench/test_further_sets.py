"""Conversion of the further alloy sets: small clones in the layout of the originals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import further_sets
from bench.clones import Clone
from tests.bench.clones import clone, png


def test_polygons_become_classes_and_what_is_not_sure_is_unknown(tmp_path: Path) -> None:
    grey = np.full((1200, 1600), 7, np.uint8)
    shapes = [
        {"label": "martensite", "points": [[0, 0], [499, 0], [499, 599], [0, 599]]},
        {"label": "bainite", "points": [[400, 0], [1599, 0], [1599, 1199], [400, 1199]]},
        {"label": "other", "points": [[0, 700], [99, 700], [99, 799]]},
    ]
    images = clone(tmp_path / "images", {"images/dq_full/8_797-DQ-full_1000x-1.tif.png": png(grey)})
    metadata = "data_labeling/src/metadata/797-DQ-full_1000x"
    labels = clone(
        tmp_path / "labels",
        {f"{metadata}-{field}.json": json.dumps({"shapes": shapes}).encode() for field in (1, 2, 3)},
    )
    found = {name: item for _, name, *item in further_sets.bainite_martensite(Clone(images), Clone(labels))}
    assert len(found) == 12
    image, first = found["field1_00"]
    assert image is not None
    assert image.shape == (600, 800)
    assert first is not None
    assert first[100, [200, 450, 700]].tolist() == [0, 255, 1]  # 450: in both polygons
    _, below = found["field1_10"]
    assert below is not None
    assert below[150, [50, 500]].tolist() == [255, 1]  # 50: in no polygon of a class
    _, last = found["field1_11"]
    assert last is not None
    assert last[[469, 470], 470].tolist() == [1, 255]  # the scale bar
    assert found["field2_00"] == [None, None]  # not in the clone


def test_tiles_of_grains_are_joined_and_ages_divided(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = "data/GRAIN DATA SET"
    tiles = {
        (row, column): np.full((4, 4), 100 * row + 10 * column, np.uint8)
        for row in (1, 2)
        for column in (1, 2)
    }
    line = np.full((4, 4), 255, np.uint8)
    line[1] = 0
    grains = clone(
        tmp_path / "grains",
        {
            **{f"{folder}/RG/RG1_{row}_{column}.jpg": png(tile) for (row, column), tile in tiles.items()},
            **{f"{folder}/RGMask/RGMask1_{row}_{column}.jpg": png(line) for row, column in tiles},
            f"{folder}/RG/RG2_1_1.jpg": png(line),  # incomplete: left out
        },
    )
    superalloy = clone(
        tmp_path / "superalloy",
        {
            f"data/examples/1070-{age}/{name}": png(line)
            for age in ("10H", "500H")
            for name in ("GT.png", "original_sem.jpg")
        },
    )
    empty = clone(tmp_path / "images", {"a": b""})
    metadata = "data_labeling/src/metadata/797-DQ-full_1000x"
    labels = clone(
        tmp_path / "labels", {f"{metadata}-{field}.json": b'{"shapes": []}' for field in (1, 2, 3)}
    )
    further_sets.convert(empty, labels, grains, superalloy, tmp_path / "sets")
    field = np.array(Image.open(tmp_path / "sets/grain_boundary_316l/img/field01.png"))
    assert field[[0, 0, 7, 7], [0, 7, 0, 7]].tolist() == [110, 120, 210, 220]
    mask = np.array(Image.open(tmp_path / "sets/grain_boundary_316l/gt/field01.png"))
    assert (mask == np.isin(np.arange(8), [1, 5])[:, None]).all()
    prime = np.array(Image.open(tmp_path / "sets/sx_superalloy/gt/age10H.png"))
    assert (prime == (line == 255)).all()
    splits = json.loads((tmp_path / "sets/sx_superalloy/splits.json").read_text(encoding="utf-8"))
    assert (splits["train"], splits["test"]) == (["age10H.png"], ["age500H.png"])
    assert "field02 is not in the clone" in capsys.readouterr().out
