"""Methods under autocast: the loss of bfloat16 features is close to that of float32 ones, and gradients are finite."""

from __future__ import annotations

import copy

import pytest
import torch

from pscl_hpc.methods import Method, Views
from pscl_hpc.methods.common.correspondence import most_similar_patches

from . import test_clustering, test_core, test_ideal
from .test_pscl_simclr import draws, make_method, make_views


@pytest.mark.parametrize(
    "module", [test_core, test_ideal, test_clustering], ids=lambda m: m.__name__.split("_")[-1]
)
def test_loss_is_close(module) -> None:  # type: ignore[no-untyped-def]
    full: Method = module.make_method()
    half = copy.deepcopy(full)
    views = make_views(4, 0)
    exact = full(views, draws(0)).loss
    with torch.autocast("cpu", torch.bfloat16):
        rounded = half(views, draws(0)).loss
    rounded.backward()
    half.after_step(0.5)
    assert float(exact.detach()) != float(rounded.detach())
    assert float(rounded.detach()) == pytest.approx(float(exact.detach()), rel=0.05)
    gradients = [weight.grad for weight in half.parameters() if weight.grad is not None]
    assert gradients
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert all(bool(value.isfinite().all()) for value in half.state_dict().values())


def annotated(size: int) -> Views:
    """A reference with two classes, left and right, and an unlabelled image."""
    views = make_views(2, 1, (size, size))
    views.labels[0] = torch.arange(size).ge(size // 2).to(torch.uint8).expand(size, size)
    return views


@pytest.mark.parametrize("rule", ["pure", "released"])
def test_templates_come_from_all_over_a_reference(rule: str) -> None:
    views = annotated(128)
    method = make_method(template_rule=rule)
    with torch.autocast("cpu", torch.bfloat16):
        key = method.key_features(views)
        assert key.scales[-1].dtype != torch.float32
        found = [method.sample_patches(views, key, draws(seed)) for seed in range(12)]
    for scale, patch_map in enumerate(key.scales):
        height, width = patch_map.shape[2:]
        patches = torch.cat([samples[scale].key_patches[0] for samples in found])
        rows = torch.div(patches[patches >= 0], width, rounding_mode="floor").double() / height
        assert 0.4 < float(rows.mean()) < 0.6
        assert float(rows.min()) < 0.2
        assert float(rows.max()) > 0.8


def test_sampling_does_not_depend_on_autocast() -> None:
    views, method = annotated(64), make_method()
    key = method.key_features(views)
    exact = method.sample_patches(views, key, draws(0))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = method.sample_patches(views, key, draws(0))
    for a, b in zip(exact, rounded, strict=True):
        assert torch.equal(a.key_patches[0], b.key_patches[0])
        assert torch.equal(a.shares, b.shares)


def test_correspondence_does_not_depend_on_autocast() -> None:
    query, key = torch.randn((2, 2, 16, 24, 24), generator=torch.Generator().manual_seed(0)).unbind()
    exact = most_similar_patches(query, key)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(most_similar_patches(query, key), exact)
