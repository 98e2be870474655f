"""Texture descriptors, and patches that are matched by them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from pscl_hpc.methods.base import Views
from pscl_hpc.methods.common.patches import PATCH_WINDOWS, texture, texture_patches
from pscl_hpc.methods.common.sampling import PatchSampler
from pscl_hpc.methods.pscl_simclr import PsclSimclrConfig
from pscl_hpc.models import Features
from pscl_hpc.seeding import Draws
from pscl_hpc.views import ViewGeometry


def test_texture_depends_on_level_and_roughness_but_not_on_exposure() -> None:
    random = torch.Generator().manual_seed(0)
    image = torch.full((1, 1, 40, 60), 0.3)
    image[..., 20:40] = 0.6
    image[..., 40:] += 0.3 * torch.rand((40, 20), generator=random)
    found = texture(image, (5, 15))[0]
    left, middle, right = found[:, 12:28, 6:14], found[:, 12:28, 27:33], found[:, 12:28, 48:54]
    assert float(left[0].max()) < float(middle[0].min())
    assert float(middle[3].max()) < float(right[3].min())
    torch.testing.assert_close(
        texture(0.5 * image + 0.2, (5, 15)), texture(image, (5, 15)), atol=5e-3, rtol=5e-3
    )


@settings(deadline=None, max_examples=25)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    window=st.sampled_from([1, 3, 7, 31]),
    seed=st.integers(0, 99),
)
def test_texture_equals_a_loop_over_pixels(height: int, width: int, window: int, seed: int) -> None:
    image = torch.rand((1, 2, height, width), generator=torch.Generator().manual_seed(seed))
    grey = image.double().mean(dim=1)[0]
    spread = grey.std(correction=0)
    grey = (grey - grey.mean()) / (spread if spread > 1e-6 else 1.0)
    half = window // 2
    wanted = torch.zeros(2, height, width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            part = grey[max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1]
            wanted[:, y, x] = torch.stack((part.mean(), part.std(correction=0)))
    torch.testing.assert_close(texture(image, (window,))[0].double(), wanted, atol=2e-3, rtol=1e-3)


def test_patch_vectors_have_length_1_or_0_in_a_uniform_image() -> None:
    random = torch.Generator().manual_seed(1)
    images = torch.rand((2, 1, 24, 40), generator=random)
    images[1] = 0.5
    patches = texture_patches(texture(images, PATCH_WINDOWS), 6, 10)
    assert patches.shape == (2, 60, 2 * len(PATCH_WINDOWS))
    torch.testing.assert_close(patches[0].norm(dim=-1), torch.ones(60))
    assert bool((patches[1] == 0).all())


class _Zero(nn.Module):
    """A head with the same projection for every patch, like an untrained network."""

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return torch.ones((*patches.shape[:-1], 4))


def _same(count: int) -> ViewGeometry:
    """Geometry of a view k that equals view q."""
    zero, one = torch.zeros(count, dtype=torch.float64), torch.ones(count, dtype=torch.float64)
    return ViewGeometry(zero.bool(), zero.long(), zero, zero, one, one)


def _phases() -> Views:
    """A rough bright phase on the left of the first image, and on the right of the second, with another exposure."""
    random = torch.Generator().manual_seed(2)
    images = torch.full((2, 1, 64, 64), 0.3)
    rough = 0.5 + 0.4 * torch.rand((64, 32), generator=random)
    images[0, 0, :, :32] = rough
    images[1, 0, :, 32:] = rough.flip(0)
    images[1] = 0.6 * images[1] + 0.05
    labels = torch.zeros(2, 64, 64, dtype=torch.uint8)
    labels[0, :, :32] = 1
    labels[1, :, 32:] = 1
    return Views(
        query=images,
        key=images,
        geometry=_same(2),
        references=1,
        labels=labels,
        comparable=torch.ones(2, dtype=torch.bool),
        production_batches=torch.full((2,), -1),
    )


def _hits(share: float) -> float:
    """Share of the second image's sampled patches that are in the phase of their template."""
    views = _phases()
    sampler = PatchSampler(PsclSimclrConfig(texture=share, templates_per_class=20), classes=2)
    maps = Features(torch.zeros(2, 3, 4, 4), (torch.zeros(2, 3, 32, 32),))
    [sample] = sampler(views, maps, nn.ModuleList([_Zero()]), Draws(0, 0, (0, 1), torch.device("cpu")))
    right = sample.key_patches[1] % 32 >= 16
    return float((right == (sample.classes == 1))[sample.valid[1]].float().mean())


def test_texture_finds_phases_that_projections_do_not() -> None:
    assert _hits(0.5) > 0.9
    assert _hits(1.0) > 0.9
    # Without texture the first free patches are taken, whatever their class.
    assert _hits(0.0) < 0.8


def test_half_texture_is_the_mean_of_both_cosines() -> None:
    views = _phases()
    random = torch.Generator().manual_seed(3)
    patch_map = torch.randn((2, 5, 16, 16), generator=random)
    sampler = PatchSampler(PsclSimclrConfig(texture=0.5, templates_per_class=1), classes=2)
    draws = Draws(0, 0, (0, 1), torch.device("cpu"))
    maps = Features(torch.zeros(2, 3, 4, 4), (patch_map,))
    [sample] = sampler(views, maps, nn.ModuleList([nn.Identity()]), draws)
    projected = F.normalize(patch_map.double().flatten(2).transpose(1, 2), dim=-1)
    described = texture_patches(texture(views.key, PATCH_WINDOWS), 16, 16).double()
    template = int(sample.key_patches[0, 0])
    similarity = sum(part[1] @ part[0, template] for part in (projected, described))
    assert int(sample.key_patches[1, 0]) == int(torch.as_tensor(similarity).argmax())


def test_texture_is_refused_with_dot_products() -> None:
    with pytest.raises(ValueError, match=r"texture.*matching"):
        PsclSimclrConfig(texture=0.5, matching="dot")
