"""Conversion of the public alloy sets: two small clones in the layout of the originals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from typer.testing import CliRunner

from bench import other_sets
from pscl_hpc.archive import Archive
from pscl_hpc.cli.main import app
from tests.bench.clones import clone, png

LINE = [[2.0, 1.0, 5.0, 1.0, 5.0, 3.0, 2.0, 3.0]]


def coco(name: str) -> bytes:
    images = [{"id": 1, "file_name": f"./data/{name}.png", "height": 8, "width": 9}]
    return json.dumps(
        {"images": images, "annotations": [{"image_id": 1, "segmentation": LINE}], "categories": []}
    ).encode()


def via(name: str, rows: list[int]) -> bytes:
    shape = {"name": "polygon", "all_points_x": [2, 5, 5, 2], "all_points_y": [*rows[:1] * 2, *rows[1:] * 2]}
    image = {"filename": f"{name}.png", "regions": [{"shape_attributes": shape}]}
    empty = {"filename": "other.png", "regions": []}
    return json.dumps({"_via_img_metadata": {"a": image, "b": empty}}).encode()


def test_masks_and_splits(tmp_path: Path) -> None:
    grey = np.arange(72, dtype=np.uint8).reshape(8, 9)
    layers = np.zeros((8, 9), np.uint8)
    layers[3:5], layers[6, 2] = 1, 2
    pools, ebc = "instance_segmentation/data", "benchmark_segmentation_data/EBC1"
    nasa = clone(
        tmp_path / "nasa",
        {
            **{f"{ebc}/{split}/{split} 1.tif": png(grey) for split in ("train", "val", "test")},
            **{f"{ebc}/{split}_annot/{split} 1.tif": png(layers) for split in ("train", "val", "test")},
            f"{pools}/annotations/train.json": coco("s_512_0_9"),
            f"{pools}/annotations/validation.json": coco("v_0_0_9"),
            f"{pools}/train/s_512_0_9.png": png(grey),
            f"{pools}/train/s_256_0_9.png": png(grey),
            f"{pools}/validation/v_0_0_9.png": png(grey),
        },
    )
    powder, annotations = "examples/powder/data/images_png", "examples/powder/data/via_2.0.8/via_powder"
    first, tested = "Sc1Tile_001-001-000", "Sc2Tile_010-006-000"
    balls = "examples/spheroidite/data"
    ampis = clone(
        tmp_path / "ampis",
        {
            **{f"{powder}/{name}.png": png(grey) for name in (first, tested, "other")},
            f"{powder}/README": b"",
            f"{annotations}_particle_masks_training.json": via(first, [1, 5]),
            f"{annotations}_particle_masks_validation.json": via(tested, [1, 5]),
            f"{annotations}_satellite_masks_training.json": via(first, [4, 7]),
            f"{annotations}_satellite_masks_validation.json": via(tested, [4, 7]),
            f"{balls}/images/train_800C-85H-Q-1_x.png": png(grey),
            f"{balls}/images/valid_800C-85H-Q-6_x.png": png(grey),
            f"{balls}/annotations/train_800C-85H-Q-1_x.png": png(layers * 100),
            f"{balls}/annotations/valid_800C-85H-Q-6_x.png": png(layers * 100),
        },
    )
    out = tmp_path / "sets"
    other_sets.convert(nasa, ampis, out)
    command = ["archive", "build", *map(str, sorted(out.iterdir())), "--out", str(tmp_path / "others.h5")]
    assert CliRunner().invoke(app, command).exit_code == 0
    with Archive(tmp_path / "others.h5") as archive:
        splits = {record.id: record.split for record in archive.records}
        assert splits == {
            "melt_pools/s_512_0_9": "train",
            "melt_pools/v_0_0_9": "test",
            **{f"oxide_coatings/{split} 1": split for split in ("train", "val", "test")},
            f"powder_particles/{first}": "train",
            f"powder_particles/{tested}": "test",
            "powder_particles/other": "train",
            "spheroidite_particles/800C-85H-Q-1_x": "train",
            "spheroidite_particles/800C-85H-Q-6_x": "test",
        }

        def mask(name: str) -> npt.NDArray[np.uint8]:
            return archive.read_mask(archive.find(name).index)

        assert (mask("oxide_coatings/val 1") == layers).all()
        assert (mask("spheroidite_particles/800C-85H-Q-1_x") == (layers == 2)).all()
        pool = np.zeros((8, 9), np.uint8)
        pool[1:4, 2:6] = 1
        assert (mask("melt_pools/v_0_0_9") == pool).all()
        powders = np.zeros((8, 9), np.uint8)
        powders[1:6, 2:6] = 1
        powders[4:8, 2:6] = 2
        assert (mask(f"powder_particles/{tested}") == powders).all()
        assert not archive.find("powder_particles/other").has_mask
