"""The visual distance of collections."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from typer.testing import CliRunner

from pscl_hpc.archive import Archive, Collection, ShardWriter
from pscl_hpc.archive.similarity import Look, compare, describe, distance, look_of
from pscl_hpc.cli.archive import archive_app
from pscl_hpc.errors import UserError


def picture(kind: str, seed: int, size: tuple[int, int] = (64, 72)) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=size)
    smooth = {"fine": 0.0, "coarse": 4.0}[kind]
    field = gaussian_filter(noise, smooth) if smooth else noise
    return np.clip(128 + 40 * field / field.std(), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("similarity") / "a.h5"
    names = {"fine": "fine", "fine2": "fine", "coarse": "coarse"}
    with ShardWriter(path, [Collection(name) for name in (*names, "single", "held")]) as writer:
        for place, (name, kind) in enumerate(names.items()):
            for index in range(6):
                image = picture(kind, 100 * place + index)
                writer.add(image, id=f"{name}/{index}", dataset=name, split="train" if index % 2 else "")
        writer.add(picture("fine", 999), id="single/0", dataset="single", split="train")
        writer.add(picture("fine", 998), id="held/0", dataset="held", split="test")
    return path


def look(vectors: list[list[float]], images: list[int]) -> Look:
    return Look("x", np.array(vectors), np.array(images))


def test_distance_equals_a_loop() -> None:
    random = np.random.default_rng(0)
    a = look(random.random((5, 3)).tolist(), [0, 0, 1, 1, 2])
    b = look((random.random((4, 3)) + 0.5).tolist(), [0, 1, 1, 2])
    within = []
    for x in (a, b):
        pairs = [
            np.linalg.norm(p - q)
            for p, i in zip(x.vectors, x.images, strict=True)
            for q, j in zip(x.vectors, x.images, strict=True)
            if i != j
        ]
        within.append(np.mean(pairs))
    between = np.mean([np.linalg.norm(p - q) for p in a.vectors for q in b.vectors])
    assert distance(a, b) == pytest.approx(1 - sum(within) / (2 * between))
    assert distance(a, b) == distance(b, a)


def test_extremes() -> None:
    a, b = look([[0.0], [0.0]], [0, 1]), look([[1.0], [1.0]], [0, 1])
    assert distance(a, b) == 1.0
    assert distance(a, a) == 0.0
    single = look([[0.5]], [0])
    assert 0.0 <= distance(single, a) <= 1.0
    assert distance(look([[0.1], [0.9]], [0, 1]), look([[0.5]], [0])) <= 0.5


def test_descriptors_are_bounded_and_bear_flat_images() -> None:
    black, white = (np.full((20, 33), level, np.float32) for level in (0, 1))
    assert np.linalg.norm(describe(black) - describe(white)) <= 1
    assert np.isfinite(describe(black)).all()
    assert describe(black).shape == (48,)
    rotated = picture("coarse", 3)[:64, :64].astype(np.float32) / 255
    assert np.allclose(describe(rotated), describe(np.rot90(rotated)), atol=1e-6)


def test_like_looks_like_and_unlike_does_not(file: Path) -> None:
    with Archive(file) as archive:
        found = compare([archive], splits=["train", ""])
    assert found.names == ("coarse", "fine", "fine2", "single")
    matrix = found.distances
    assert np.array_equal(matrix[~np.eye(4, dtype=bool)], matrix.T[~np.eye(4, dtype=bool)])
    assert matrix[1, 2] < 0.1
    assert matrix[0, 1] > 0.5
    assert max(matrix[0, 0], matrix[1, 1]) < 0.1
    assert math.isnan(matrix[3, 3])


def test_a_collection_is_described_by_few_windows_the_same_each_time(file: Path) -> None:
    with Archive(file) as archive:
        records = archive.select(datasets=["fine"])
        first, again = (look_of(archive, records, "fine") for _ in range(2))
    assert np.array_equal(first.vectors, again.vectors)
    assert len(first.vectors) == 6, "an image smaller than a window is one window"


def test_two_archives_and_too_little_to_compare(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "b.h5"
    with ShardWriter(other, [Collection("held")]) as writer:
        writer.add(picture("fine", 998), id="held/1", dataset="held", split="test")
    with Archive(file) as a, Archive(other) as b:
        found = compare([a, b], splits=["test"])
        assert found.names == (f"{file}:held", f"{other}:held")
        assert found.distances[0, 1] < 0.5
        with pytest.raises(UserError, match=r"\['val'\].*--splits"):
            compare([a], splits=["val"])


def test_command_sorts_by_likeness(file: Path) -> None:
    run = CliRunner().invoke
    result = run(archive_app, ["compare", str(file), "--to", "fine"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[2].endswith("fine - coarse")
    assert lines[3].startswith("halves of one collection: coarse ")
    parsed = json.loads(run(archive_app, ["compare", str(file), "--json"]).output)
    assert len(parsed["pairs"]) == 6
    assert parsed["halves"]["single"] is None
    result = run(archive_app, ["compare", str(file), "--to", "finee"])
    assert isinstance(result.exception, UserError)
    assert "coarse, fine, fine2" in str(result.exception)


def test_an_archive_is_not_compared_with_itself(file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.h5"
    copy.write_bytes(file.read_bytes())
    for other in (file, copy):
        with Archive(file) as first, Archive(other) as second, pytest.raises(UserError, match="same content"):
            compare([first, second], splits=("",))
