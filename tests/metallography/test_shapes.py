"""Measurements of shapes with known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial import KDTree
from skimage.segmentation import find_boundaries

from pscl_hpc.errors import UserError
from pscl_hpc.metallography.grains import find_grains, number_by_area, number_by_intercept
from pscl_hpc.metallography.image import Rules, measure_image
from pscl_hpc.metallography.lines import count_changes
from pscl_hpc.metallography.particles import find_particles, weighted_percentiles
from pscl_hpc.metallography.summary import GRAINS, summarise
from pscl_hpc.segmentation.classes import ClassList

TWO = ClassList(("matrix", "carbide"))


def discs(size: int, centres: list[tuple[float, float]], radii: list[float]) -> np.ndarray:
    """A label map with discs of class 1."""
    y, x = np.mgrid[:size, :size]
    labels = np.zeros((size, size), np.uint8)
    for (cy, cx), radius in zip(centres, radii, strict=True):
        labels[(y - cy) ** 2 + (x - cx) ** 2 <= radius**2] = 1
    return labels


def voronoi(size: int, grains: float, seed: int) -> np.ndarray:
    """Labels (size, size) of the cells of random points, ``grains`` of them in the image on average."""
    random = np.random.default_rng(seed)
    rim = size // 8
    count = random.poisson(grains * ((size + 2 * rim) / size) ** 2)
    points = random.uniform(-rim, size + rim, (count, 2))
    pixels = np.stack(np.mgrid[:size, :size], axis=-1).reshape(-1, 2)
    cells: np.ndarray = KDTree(points).query(pixels)[1].reshape(size, size) + 1
    return cells


def test_a_disc_and_a_rectangle() -> None:
    labels = discs(100, [(30, 30)], [12])
    labels[60:70, 40:80] = 1
    found = find_particles(labels == 1, labels < 255)
    disc, box = np.argsort(found.y)
    assert found.inside == 2
    assert found.diameter[disc] == pytest.approx(24, rel=0.03)
    assert found.aspect[disc] == pytest.approx(1, abs=0.01)
    assert found.area[box] == 400
    assert found.aspect[box] == pytest.approx(4)
    assert (found.y[box], found.x[box]) == (64.5, 59.5)
    assert found.neighbour[box] == found.neighbour[disc] == pytest.approx(math.hypot(34.5, 29.5))


def test_a_line_of_pixels_has_an_aspect_ratio() -> None:
    phase = np.zeros((9, 30), bool)
    phase[4, 5:25] = True
    assert find_particles(phase, np.ones_like(phase)).aspect[0] == pytest.approx(20)


def test_cut_and_small_particles_are_counted_only() -> None:
    phase = np.zeros((40, 40), bool)
    phase[0:5, 10:15] = phase[20:25, 20:25] = True
    phase[30, 30] = True
    known = np.ones_like(phase)
    found = find_particles(phase, known, smallest=2)
    assert (found.inside, found.cut, found.small) == (1, 1, 1)
    known[22:, 26] = False  # beside no pixel of the particle
    assert find_particles(phase, known, smallest=2).inside == 1
    known[22, 25] = False
    assert find_particles(phase, known, smallest=2).cut == 2


def test_corners_connect_pixels_of_a_phase() -> None:
    phase = np.eye(12, dtype=bool)
    phase[0] = phase[:, 0] = phase[-1] = phase[:, -1] = False
    known = np.ones_like(phase)
    assert find_particles(phase, known).inside == 1
    assert find_particles(phase, known, corners=False).inside == 10


def test_without_particles_and_without_known_pixels() -> None:
    empty = np.zeros((8, 8), bool)
    assert find_particles(empty, ~empty).inside == 0
    image = measure_image("unknown", np.full((8, 8), 255, np.uint8), Rules.of(TWO))
    summary = summarise([image], Rules.of(TWO))
    assert summary.find("carbide", "fraction").value is None
    assert summary.find("carbide", "particles per area").value is None


def test_density_and_mean_diameter_have_no_bias_from_the_edge() -> None:
    """Discs of two sizes on a shifted grid of 40 pixels: the large ones are cut twice as often."""
    rules = Rules.of(TWO, smallest=1)
    random = np.random.default_rng(3)
    images = []
    for number in range(16):
        shift = random.uniform(0, 40, 2)
        places = [(40 * i + shift[0], 40 * j + shift[1]) for i in range(-1, 5) for j in range(-1, 5)]
        radii = random.choice([4.0, 16.0], len(places)).tolist()
        images.append(measure_image(str(number), discs(160, places, radii), rules))
    summary = summarise(images, rules)
    density = summary.find("carbide", "particles per area")
    diameter = summary.find("carbide", "mean diameter")
    assert density.low is not None
    assert density.high is not None
    assert diameter.low is not None
    assert diameter.high is not None
    assert density.low < 1 / 40**2 < density.high
    assert diameter.low < 20 < diameter.high
    assert diameter.value == pytest.approx(20, rel=0.06)
    plain = np.concatenate([image.phases[1].particles.diameter for image in images]).mean()
    assert plain < 0.95 * 20  # what a mean without weights would give


def test_mean_free_path_and_chord_of_discs() -> None:
    """Underwood: N_L = N_A d for discs; the mean chord of a disc is pi d / 4."""
    places = [(20 + 40 * i, 20 + 40 * j) for i in range(5) for j in range(5)]
    rules = Rules.of(TWO)
    summary = summarise([measure_image("a", discs(200, places, [12.0] * 25), rules)], rules)
    share = math.pi * 12**2 / 40**2
    assert summary.find("carbide", "mean chord length").value == pytest.approx(math.pi * 6, rel=0.05)
    path = (1 - share) / (24 / 40**2)
    assert summary.find("carbide", "mean free path between particles").value == pytest.approx(path, rel=0.03)


def test_lines_of_a_checkerboard() -> None:
    board = (np.indices((40, 60)) // 10).sum(axis=0) % 2
    count = count_changes(board, np.ones(board.shape, bool))
    assert count.changes[:2] == (40 * 5, 60 * 3)
    assert count.lengths[:2] == (40 * 59, 39 * 60)


def test_square_grains() -> None:
    """4 x 5 squares of 20 pixels: every procedure counts 20 grains, and lines along the axes one in 20 pixels."""
    boundary = np.zeros((100, 80), bool)
    boundary[19:-1:20] = boundary[:, 19:-1:20] = True
    grains = find_grains(boundary, np.ones_like(boundary))
    assert grains.particles.inside == 6
    # 10 at the edges count half, 4 at the corners a quarter.
    assert grains.planimetric == 6 + 10 / 2 + 4 / 4
    assert grains.crossings.changes[:2] == (100 * 3, 80 * 4)


def test_voronoi_grains() -> None:
    """Random cells, N per area: the mean lineal intercept is pi / (4 sqrt(N)) (Meijering 1953)."""
    rules = Rules.of(ClassList(("grain", "edge")), boundary="edge")
    images = []
    for seed in range(4):
        edges = find_boundaries(voronoi(256, 120, seed), mode="inner", connectivity=1)
        images.append(measure_image(str(seed), edges.astype(np.uint8), rules, um_per_pixel=0.5))
    summary = summarise(images, rules)
    per_um2 = 120 / 128**2
    assert summary.unit == "um"
    assert summary.find(GRAINS, "grains per area (planimetric)").value == pytest.approx(per_um2, rel=0.1)
    intercept = math.pi / 4 / math.sqrt(per_um2)
    assert summary.find(GRAINS, "mean lineal intercept").value == pytest.approx(intercept, rel=0.06)
    by_area = summary.find(GRAINS, "ASTM grain size G (planimetric)").value
    by_line = summary.find(GRAINS, "ASTM grain size G (intercept)").value
    assert by_area == pytest.approx(number_by_area(per_um2 * 1e6), abs=0.15)
    assert by_line == pytest.approx(number_by_intercept(intercept * 1e-3), abs=0.2)


def test_the_width_of_boundaries_does_not_count() -> None:
    cells = voronoi(128, 30, 5)
    known = np.ones(cells.shape, bool)
    thin = find_grains(find_boundaries(cells, mode="inner", connectivity=1), known)
    thick = find_grains(find_boundaries(cells, mode="thick", connectivity=2), known)
    assert thick.planimetric == pytest.approx(thin.planimetric, rel=0.1)
    assert thick.crossings.per_pixel == pytest.approx(thin.crossings.per_pixel or 0, rel=0.1)


def test_a_boundary_that_ends_inside_a_grain_separates_nothing() -> None:
    boundary = np.zeros((60, 60), bool)
    boundary[30, :30] = True
    grains = find_grains(boundary, np.ones_like(boundary))
    assert grains.planimetric == 1  # all corners
    assert grains.crossings.per_pixel == 0


def test_the_definition_of_the_grain_size_number() -> None:
    """G = 1 has 15.5 grains per mm2 (one per square inch at 100 x); E112 gives it a mean intercept of 0.226 mm."""
    assert number_by_area(15.5) == pytest.approx(1.0, abs=0.01)
    assert number_by_intercept(0.2263) == pytest.approx(1.0, abs=0.01)


def test_percentiles_of_weighted_values() -> None:
    values, weights = np.array([3.0, 1.0, 2.0]), np.array([1.0, 1.0, 2.0])
    assert weighted_percentiles(values, weights, (0.5,)) == [2.0]
    with pytest.raises(ValueError, match="no values"):
        weighted_percentiles(np.zeros(0), np.zeros(0), (0.5,))


def test_rules_by_name() -> None:
    classes = ClassList(("matrix", "carbide", "edge", "void"), ignored=(3,))
    assert Rules.of(classes, boundary="edge").phases == (1,)
    assert Rules.of(classes, phases=("matrix",)).phases == (0,)
    for arguments in ({"phases": ("carbid",)}, {"boundary": "void"}):
        with pytest.raises(UserError, match="is not a class"):
            Rules.of(classes, **arguments)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--smallest"):
        Rules.of(classes, smallest=0)
