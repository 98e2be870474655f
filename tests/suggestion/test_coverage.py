"""Patches, distances and the choice, against direct computations."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from pscl_hpc.archive import Archive, Collection, ShardWriter
from pscl_hpc.suggestion import FILTERS, dense_features
from pscl_hpc.suggestion.coverage import Nearness, choose, measure, nearest_distances
from pscl_hpc.suggestion.patches import STEP, describe, fit_projection, read_patches, windows_of
from pscl_hpc.suggestion.textures import equal_weights, find_textures, labels_of, shares

from .textures import texture, textured_archive


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 50), (100, 33)])
def test_a_patch_for_every_square(size: tuple[int, int]) -> None:
    found = describe(np.zeros((1, *size), np.float32), dense_features(FILTERS))
    assert found.shape == (-(-size[0] // STEP), -(-size[1] // STEP), 76)


def test_the_edge_of_an_image_is_no_texture() -> None:
    """Descriptors of an image that repeats are the same at its edge and inside."""
    tile = texture("fine", 1, (16, 16)).astype(np.float32) / 255
    tile = np.concatenate([tile, tile[::-1]])
    tile = np.concatenate([tile, tile[:, ::-1]], axis=1)
    found = describe(np.tile(tile, (4, 4))[None], dense_features(FILTERS))
    np.testing.assert_allclose(found, np.broadcast_to(found[3, 3], found.shape), atol=2e-3)


def test_components_keep_the_distances() -> None:
    random = np.random.default_rng(0)
    parts = [(random.normal(size=(n, 6)) * [1, 5, 100, 0.1, 1, 0] + 3).astype(np.float32) for n in (30, 50)]
    project = fit_projection(parts)
    joined = np.concatenate(parts).astype(np.float64)
    scaled = (joined - joined.mean(axis=0)) / np.where(joined.std(axis=0) > 0, joined.std(axis=0), 1)
    scaled /= np.sqrt(np.square(scaled).sum(axis=1).mean())
    expected = np.linalg.norm(scaled[:, None] - scaled[None], axis=2)
    found = np.concatenate([project(part) for part in parts])
    np.testing.assert_allclose(
        np.linalg.norm(found[:, None] - found[None], axis=2), expected, rtol=1e-3, atol=1e-4
    )


def test_nearest_distances_equal_a_loop() -> None:
    random = np.random.default_rng(0)
    a, b = (random.normal(size=(n, 3)).astype(np.float32) for n in (7, 5))
    expected = [min(float(np.linalg.norm(x - y)) for y in b) for x in a]
    np.testing.assert_allclose(nearest_distances(a, b), expected, rtol=1e-4)


def test_the_choice_is_greedy_and_nearly_the_best() -> None:
    random = np.random.default_rng(0)
    distances = random.random((7, 60)).astype(np.float32)
    weights = random.random(60)
    weights /= weights.sum()
    nearness = Nearness(distances, np.arange(60) % 7, weights, 0.2)
    chosen = choose(nearness, 3)
    assert chosen[0] == int((distances @ weights).argmin())
    second = [np.inf if i == chosen[0] else nearness.nearest([chosen[0], i]) @ weights for i in range(7)]
    assert chosen[1] == int(np.argmin(second))
    start = distances.max()
    best = max(start - nearness.nearest(three) @ weights for three in combinations(range(7), 3))
    assert start - nearness.nearest(chosen) @ weights >= (1 - 1 / np.e) * best
    assert choose(nearness, 9)[:3] == chosen
    assert sorted(choose(nearness, 9)) == list(range(7))
    near = (distances[chosen] <= 0.2).any(axis=0)
    assert nearness.textures_covered(chosen) == pytest.approx(weights[near].sum())


def test_a_rare_texture_counts_as_much_as_a_frequent_one() -> None:
    """Two points far apart, one with a hundred times the members of the other."""
    vectors = np.repeat(np.array([[0, 0], [9, 9]], np.float32), [500, 5], axis=0)
    weights = equal_weights(vectors, np.random.default_rng(0))
    assert weights[:500].sum() == pytest.approx(0.5)
    assert weights[500:].sum() == pytest.approx(0.5)


def test_images_count_the_same_whatever_their_size(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with ShardWriter(path, [Collection("steel")]) as writer:
        for number, size in enumerate([(20, 20), (160, 160)]):
            writer.add(texture("fine", number, size), id=f"steel/{number}", dataset="steel")
    archive = Archive(path)
    nearness = measure(read_patches(archive, archive.records, dense_features(FILTERS)), seed=0)
    assert np.bincount(nearness.image_of).tolist() == [2048, 2048]
    assert nearness.distances[0, :2048].max() == 0
    assert nearness.covered([1])[1] == 1


def test_large_images_are_read_in_some_windows(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with ShardWriter(path, [Collection("steel")]) as writer:
        writer.add(np.zeros((20, 1024 * 12 + 5), np.uint8), id="steel/0", dataset="steel")
        writer.add(texture("fine", 0, (1040, 30)), id="steel/1", dataset="steel")
    archive = Archive(path)
    windows = list(windows_of(archive.records[0]))
    assert len(windows) == 6
    assert windows[0] == (0, 0, 20, 1024)
    assert windows[-1] == (0, 1024 * 12, 20, 5)
    [image] = read_patches(archive, archive.records[1:], dense_features(FILTERS))
    assert image.grid == (65, 2)
    expected = {(row, column) for row in range(65) for column in range(2)}
    assert {(int(row), int(column)) for row, column in image.places} == expected
    assert len(image.places) == len(expected)


def test_textures_are_those_of_the_images(tmp_path: Path) -> None:
    kinds = {"a": "fine", "b": "coarse", "c": "both"}
    archive = Archive(textured_archive(tmp_path / "a.h5", kinds))
    images = read_patches(archive, archive.records, dense_features(FILTERS))
    centres = find_textures(images, seed=0)
    assert 2 <= len(centres) <= 12
    found = shares(images, centres)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert np.minimum(found[0], found[1]).sum() < 0.1
    assert np.minimum(found[0], found[2]).sum() > 0.1
    counts = np.bincount(labels_of(images[0], centres), minlength=len(centres))
    np.testing.assert_allclose(counts / counts.sum(), found[0])
