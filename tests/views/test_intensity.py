"""Intensity changes: shading, and the shares of images that are blurred or noisy."""

from __future__ import annotations

import torch

from pscl_hpc.config import JitterConfig
from pscl_hpc.views import jitter


def test_shading_adds_a_ramp_of_bounded_height_and_leaves_other_draws_alone() -> None:
    images = torch.full((64, 1, 24, 40), 0.5)
    plain = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, "probability": 1.0}
    config = JitterConfig.model_validate({**plain, "shading": 0.4})
    found = jitter(images, config, torch.Generator().manual_seed(0)) - 0.5
    heights = found.amax(dim=(1, 2, 3)) - found.amin(dim=(1, 2, 3))
    assert 0.3 < float(heights.max()) <= 0.4 + 1e-6
    assert float(found.mean(dim=(1, 2, 3)).abs().max()) < 1e-6, "the mean brightness stays"
    for axis in (2, 3):  # linear along both axes
        assert float(found.diff(dim=axis).diff(dim=axis).abs().max()) < 1e-6
    directions = torch.atan2(found[:, 0, -1, 0] - found[:, 0, 0, 0], found[:, 0, 0, -1] - found[:, 0, 0, 0])
    assert float(directions.std()) > 1, "all directions occur"
    noisy = JitterConfig.model_validate({**plain, "noise": 0.1})
    both = JitterConfig.model_validate({**plain, "noise": 0.1, "shading": 0.4})
    first, second = (jitter(images, c, torch.Generator().manual_seed(0)) for c in (noisy, both))
    torch.testing.assert_close(second - first, found, atol=1e-6, rtol=0)


def test_a_share_of_the_images_is_blurred_or_noisy() -> None:
    images = torch.rand(400, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    plain = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, "probability": 1.0}
    for key in ("blur", "noise"):
        config = JitterConfig.model_validate({**plain, key: 1.2, f"{key}_share": 0.3})
        changed = (
            (jitter(images, config, torch.Generator().manual_seed(0)) - images).abs().amax(dim=(1, 2, 3))
        )
        assert 0.2 < float((changed > 1e-6).float().mean()) < 0.4
