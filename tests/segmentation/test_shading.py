"""Correction of uneven illumination."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pscl_hpc.archive import Window
from pscl_hpc.segmentation.config import InferenceConfig
from pscl_hpc.segmentation.inference import Predictor
from pscl_hpc.segmentation.shading import corrected

from .helpers import THREE, reader
from .test_inference import Pointwise

Pixels = npt.NDArray[np.float32]


def texture(channels: int, height: int, width: int, seed: int = 0) -> Pixels:
    """Values from 0.4 to 0.6."""
    noise = np.random.default_rng(seed).random((channels, height, width), np.float32)
    return 0.4 + 0.2 * noise


def surface(weights: tuple[float, ...], height: int, width: int) -> Pixels:
    """A polynomial of degree 2 between -0.3 and 0.3."""
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    a, b, c, d, e = weights
    return (0.06 * (a * y + b * x + c * y * y + d * x * x + e * y * x)).astype("f4")


def whole(image: Pixels, *, standardise: bool = False) -> Pixels:
    height, width = image.shape[1:]
    return corrected(reader(image), height, width, standardise=standardise)((0, 0, height, width))


unit = st.floats(-1, 1)


@given(st.tuples(unit, unit, unit, unit, unit), st.sampled_from([(40, 61), (3, 90), (7, 7)]), st.booleans())
def test_shading_of_degree_two_makes_no_difference(
    weights: tuple[float, ...], shape: tuple[int, int], standardise: bool
) -> None:
    image = texture(1, *shape)
    even, uneven = (
        whole(image, standardise=standardise),
        whole(image + surface(weights, *shape), standardise=standardise),
    )
    if not standardise:
        # The mean, which the surface changes, stays.
        uneven = uneven + (even.mean() - uneven.mean())
    np.testing.assert_allclose(uneven, even, atol=1e-4)


# The largest is read in several bands, and the surface is fitted to every third pixel.
@pytest.mark.parametrize("shape", [(1, 50, 70), (3, 33, 47), (1, 700, 1100)])
@pytest.mark.parametrize("standardise", [False, True])
def test_even_images_keep_their_levels(shape: tuple[int, int, int], standardise: bool) -> None:
    image = texture(*shape)
    if standardise:
        image = 0.5 + (image - image.mean()) / (6 * image.mean(axis=0).std())
    found = whole(image, standardise=standardise)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.mean(axis=(1, 2)), np.clip(image, 0, 1).mean(axis=(1, 2)), atol=0.03)
    assert np.corrcoef(found.ravel(), image.ravel())[0, 1] > 0.98


def test_every_channel_has_a_surface_of_its_own() -> None:
    image = texture(3, 40, 50)
    image[1] -= 0.2
    weights = [(1.0, -1, 0.5, 0, 0), (0, 0, 1, -1, 1), (-1, 0.2, 0, 0, 1)]
    uneven = image + np.stack([surface(one, 40, 50) for one in weights])
    even, found = whole(image), whole(uneven)
    np.testing.assert_allclose(
        found - found.mean(axis=(1, 2), keepdims=True),
        even - even.mean(axis=(1, 2), keepdims=True),
        atol=1e-4,
    )
    np.testing.assert_allclose(found.mean(axis=(1, 2)), uneven.mean(axis=(1, 2)), atol=1e-5)


def test_the_grey_level_is_standardised() -> None:
    found = whole(texture(1, 64, 80) + surface((1, 1, -1, -1, 0), 64, 80), standardise=True)
    assert found.mean() == pytest.approx(0.5, abs=1e-3)
    assert found.std() == pytest.approx(1 / 6, abs=1e-3)


def test_windows_are_parts_of_the_whole() -> None:
    image = texture(1, 90, 70) + surface((1, 0, -1, 0.5, 0), 90, 70)
    read = corrected(reader(image), 90, 70, standardise=True)
    np.testing.assert_array_equal(read((20, 5, 33, 40)), read((0, 0, 90, 70))[:, 20:53, 5:45])


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 9), (3, 5, 2), (1, 30, 30)])
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_an_image_of_one_level_stays(shape: tuple[int, int, int], level: float) -> None:
    np.testing.assert_allclose(whole(np.full(shape, level, np.float32)), level, atol=1e-6)
    standardised = whole(np.full(shape, 0.5, np.float32), standardise=True)
    np.testing.assert_allclose(standardised, 0.5, atol=1e-6)


def test_the_image_is_read_once_in_bands() -> None:
    image = texture(1, 600, 40)
    windows: list[Window] = []

    def read(window: Window) -> Pixels:
        windows.append(window)
        return reader(image)(window)

    corrected(read, 600, 40, standardise=False)
    assert sum(rows for _, _, rows, _ in windows) == 600
    assert max(rows for _, _, rows, _ in windows) < 600


def test_predictions_under_uneven_light() -> None:
    """A network that goes by brightness, on three levels and a vignette."""
    levels = np.random.default_rng(0).integers(0, 3, (80, 96))
    image = np.array([0.15, 0.5, 0.85], np.float32)[levels][None]
    uneven = image + surface((0, 0, -6, -6, 0), 80, 96) + np.float32(0.24)

    def right(correct: bool) -> float:
        net = Pointwise()
        predict = Predictor(
            net,  # type: ignore[arg-type]
            THREE,
            torch.device("cpu"),
            inference=InferenceConfig(correct_shading=correct),
        )
        return float((predict(reader(uneven), 80, 96) == levels).mean())

    assert right(correct=True) == 1
    assert right(correct=False) < 0.9
