"""Feature sets: values, sizes, and images in parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from pscl_hpc.archive import Archive, Collection, ShardWriter
from pscl_hpc.classifiers import FEATURES, FeatureCache, FeatureReader, FeatureSet, PixelMaps
from pscl_hpc.classifiers.features.base import Picture
from pscl_hpc.errors import UserError
from pscl_hpc.models import build_trunk, save_trunk
from pscl_hpc.models.unet import UNetConfig

SMALL_TRUNK = {"name": "unet", "widths": [4, 8, 8], "standardise": True}


def feature_set(pretrained: str = "", **keys: object) -> FeatureSet:
    config = FEATURES.config(str(keys["name"])).model_validate(keys)
    return FEATURES.implementation(config)(config, pretrained)


def picture(height: int = 40, width: int = 33, seed: int = 0) -> Picture:
    values = np.random.default_rng(seed).normal(0.5, 0.16, (1, height, width))
    grey = torch.from_numpy(ndimage.gaussian_filter(values, (0, 1, 1)).astype(np.float32))
    return Picture(grey, grey)


def everywhere(maps: PixelMaps, height: int, width: int) -> Tensor:
    """The features of all pixels, (h, w, F)."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return maps.at(rows.reshape(-1), columns.reshape(-1)).reshape(height, width, -1)


def test_filters_are_those_that_they_are_called() -> None:
    features = feature_set(name="filters", sigmas=[2.0], medians=[3])
    image = picture()
    found = everywhere(features.maps(image), 40, 33).numpy()
    assert found.shape == (40, 33, features.count) == (40, 33, 9)
    grey = image.grey[0].numpy().astype(np.float64)
    inner = (slice(6, -6), slice(6, -6))

    def gaussian(order: tuple[int, int]) -> np.ndarray:
        blurred: np.ndarray = ndimage.gaussian_filter(grey, 2.0, order=order, mode="mirror")
        return blurred

    np.testing.assert_allclose(found[..., 0], grey, atol=1e-3)
    np.testing.assert_allclose(found[..., 1], gaussian((0, 0)), atol=3e-3)
    square = ndimage.gaussian_filter(grey**2, 2.0, mode="mirror")
    np.testing.assert_allclose(found[..., 2], np.sqrt(square - gaussian((0, 0)) ** 2), atol=3e-3)
    # Derivatives are differences of the smoothed image: close to those of the Gaussian away from the edges.
    slope = 2 * np.hypot(gaussian((1, 0)), gaussian((0, 1)))
    np.testing.assert_allclose(found[inner][..., 3], slope[inner], atol=0.1 * slope.max())
    yy, yx, xx = gaussian((2, 0)), gaussian((1, 1)), gaussian((0, 2))
    hessian = 4 * np.linalg.eigvalsh(np.stack([np.stack([yy, yx], -1), np.stack([yx, xx], -1)], -1))
    for place, column in ((4, 1), (5, 0)):
        assert np.corrcoef(found[inner][..., place].ravel(), hessian[inner][..., column].ravel())[0, 1] > 0.98
    assert (found[..., 6] >= found[..., 7]).all()
    assert found[..., 7].min() > -1e-4, "a structure tensor has no negative eigenvalue"
    np.testing.assert_allclose(found[..., 8], ndimage.median_filter(grey, 3, mode="mirror"), atol=1e-3)


def test_filters_are_equal_in_all_orientations() -> None:
    features = feature_set(name="filters", sigmas=[1.0, 4.0], medians=[5])
    image = picture(48, 48)
    turned = torch.rot90(image.grey.flip(2), 1, (1, 2)).contiguous()
    plain = everywhere(features.maps(image), 48, 48).permute(2, 0, 1)
    found = everywhere(features.maps(Picture(turned, turned)), 48, 48).permute(2, 0, 1)
    torch.testing.assert_close(torch.rot90(found, -1, (1, 2)).flip(2), plain, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 3)])
@pytest.mark.parametrize("name", ["filters", "trunk"])
def test_tiny_and_flat_images_have_finite_features(name: str, size: tuple[int, int]) -> None:
    features = feature_set(
        name=name, **({"model": SMALL_TRUNK, "strides": [1, 4]} if name == "trunk" else {})
    )
    grey = torch.full((1, *size), 0.5)
    found = everywhere(features.maps(Picture(grey, grey)), *size)
    assert found.shape == (*size, features.count)
    assert found.isfinite().all()


def test_coarse_maps_are_interpolated_between_their_centres() -> None:
    values = torch.tensor([[[0.0, 4.0]]]).half()
    maps = PixelMaps((values,), ((4.0, 4.0),))
    found = maps.at(torch.zeros(8, dtype=torch.long), torch.arange(8))[:, 0]
    # Centres of the map's pixels are at 2 and 6; pixels of the image are at 0.5, 1.5, ...
    expected = (torch.arange(8) + 0.5 - 2).clamp(0, 4)
    torch.testing.assert_close(found, expected)


def test_trunk_maps_are_those_of_the_encoder(tmp_path: Path) -> None:
    config = UNetConfig.model_validate(SMALL_TRUNK)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        trunk = build_trunk(config).eval()
    save_trunk(tmp_path / "trunk.safetensors", trunk)
    features = feature_set(
        str(tmp_path / "trunk.safetensors"), name="trunk", strides=[1], upscale=1, filters=None
    )
    image = picture(32, 36)
    with torch.inference_mode():
        expected = trunk.encode(image.image[None])[0][0].permute(1, 2, 0)
    assert features.count == config.maps.encoder[0].channels
    torch.testing.assert_close(everywhere(features.maps(image), 32, 36), expected, atol=2e-3, rtol=2e-3)


def test_decoder_maps_need_a_pretrained_decoder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"features\.decoder"):
        feature_set(name="trunk", model=SMALL_TRUNK, strides=[2], decoder=True)
    save_trunk(tmp_path / "trunk.safetensors", build_trunk(UNetConfig.model_validate(SMALL_TRUNK)))
    keys = {"name": "trunk", "strides": [2], "filters": None}
    plain = feature_set(str(tmp_path / "trunk.safetensors"), **keys)
    both = feature_set(str(tmp_path / "trunk.safetensors"), **keys, decoder=True)
    assert both.count > plain.count


@pytest.mark.parametrize(
    ("keys", "named"),
    [({"strides": [3]}, "strides has 3"), ({"strides": [1], "model": {"name": "unet"}}, "another trunk")],
)
def test_wrong_trunk_settings_are_named(tmp_path: Path, keys: dict[str, object], named: str) -> None:
    save_trunk(tmp_path / "trunk.safetensors", build_trunk(UNetConfig.model_validate(SMALL_TRUNK)))
    with pytest.raises(UserError, match=named):
        feature_set(str(tmp_path / "trunk.safetensors"), name="trunk", **keys)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """An archive of one image of 300 x 270 pixels, not standardised."""
    path = tmp_path_factory.mktemp("large") / "large.h5"
    values = np.random.default_rng(1).normal(size=(300, 270))
    image = np.clip(120 + 90 * ndimage.gaussian_filter(values, 2), 0, 255).astype(np.uint8)
    with ShardWriter(path, [Collection("a")]) as writer:
        writer.add(image, id="a/large", dataset="a")
    return Archive(path)


@pytest.mark.parametrize(
    ("resize", "sigmas", "median", "tolerance"), [(1.0, [1.0, 8.0], 7, 1e-3), (0.5, [1.0, 4.0], 5, 2e-3)]
)
def test_an_image_in_parts_has_the_filters_of_the_whole(
    large: Archive, resize: float, sigmas: list[float], median: int, tolerance: float
) -> None:
    features = feature_set(name="filters", sigmas=sigmas, medians=[median])
    whole, *none = FeatureReader(features, resize=resize).parts(large, 0)
    assert none == []
    expected = everywhere(whole.maps, 300, 270)
    parts = list(FeatureReader(features, block=128, resize=resize).parts(large, 0))
    assert len(parts) == 9
    for part in parts:
        (y0, x0, height, width), (top, left) = part.window, part.corner
        found = everywhere(part.maps, *part.outer[2:])[top : top + height, left : left + width]
        wanted = expected[y0 : y0 + height, x0 : x0 + width]
        torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)


def test_features_of_a_reduced_image_are_at_the_places_of_the_image(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:90, :110]
    ramp = (rows + columns).astype(np.uint8)
    with ShardWriter(tmp_path / "a.h5", [Collection("a")]) as writer:
        writer.add(ramp, id="a/0", dataset="a")
    with Archive(tmp_path / "a.h5") as archive:
        for scale in (0.37, 0.5):
            features = feature_set(name="filters", sigmas=[2.0], medians=[])
            reader = FeatureReader(features, resize=scale)
            found = everywhere(next(reader.parts(archive, 0)).maps, 90, 110)
            grey = torch.from_numpy(archive.read_unit(0, standardise=True))[0]
            inside = (slice(20, -20), slice(20, -20))
            for feature in (0, 1):  # the grey level, and its mean around a pixel
                torch.testing.assert_close(found[..., feature][inside], grey[inside], atol=3e-3, rtol=0)


def test_a_cache_gives_the_same_maps_and_is_keyed_by_content(large: Archive, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "features")
    keys = {"name": "trunk", "model": SMALL_TRUNK, "strides": [2, 4]}
    plain = next(FeatureReader(feature_set(**keys)).parts(large, 0)).maps
    for _ in range(2):
        found = next(FeatureReader(feature_set(**keys), cache).parts(large, 0)).maps
        assert all(torch.equal(a, b) for a, b in zip(found.maps, plain.maps, strict=True))
        assert found.strides == plain.strides
    files = list(cache.folder.rglob("*.safetensors"))
    assert len(files) == 1
    next(FeatureReader(feature_set(name="filters"), cache).parts(large, 0))
    changed = feature_set(**keys)
    weights = {name: value + 1 for name, value in changed.weights().items()}
    changed.load_weights(weights)
    next(FeatureReader(changed, cache).parts(large, 0))
    next(FeatureReader(changed, cache, resize=0.5).parts(large, 0))
    assert len(list(cache.folder.rglob("*.safetensors"))) == 4
    # A damaged file is made again.
    files[0].write_bytes(b"damaged")
    found = next(FeatureReader(feature_set(**keys), cache).parts(large, 0)).maps
    assert all(torch.equal(a, b) for a, b in zip(found.maps, plain.maps, strict=True))
    assert cache.read(files[0].stem) is not None
