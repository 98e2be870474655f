"""The dense loss against an oracle that loops over patches."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from pscl_hpc.methods import Setting, Views
from pscl_hpc.methods.common.correspondence import match_patches
from pscl_hpc.methods.ideal import Ideal, IdealConfig
from pscl_hpc.models.unet import UNet, UNetConfig
from pscl_hpc.seeding import Draws

from .test_pscl_simclr import draws, make_views, nt_xent


def make_method(**changes: object) -> Ideal:
    torch.manual_seed(0)
    config = IdealConfig.model_validate({"projection": 8, "hidden": 8, "patches_per_image": 0, **changes})
    method = Ideal(UNet(UNetConfig(widths=(4, 8, 8, 16))), config, Setting())
    with torch.no_grad():  # so that a mix-up of the branches shows
        for weight in method.momentum_trunk.parameters():
            weight.mul_(1.1)
    return method


def oracle(method: Ideal, views: Views, tau: float) -> float:
    """InfoNCE of each patch against all patches of other images, in both views, in loops."""
    query = method.trunk.encode(views.query)[-1].detach()
    key = method.momentum_trunk.module.encode(views.key)[-1].detach()
    matches = match_patches(method.config.correspondence, views.geometry, query, key)
    width = query.shape[3]
    rows, images = [[], []], []
    for image in range(len(query)):
        for pair in range(matches.valid.shape[1]):
            if not matches.valid[image, pair]:
                continue
            images.append(image)
            for side, (patch_map, patches, head) in enumerate(
                ((query, matches.query, method.patch_head), (key, matches.key, method.momentum_patch_head))
            ):
                patch = int(patches[image, pair])
                vector = head(patch_map[image, :, patch // width, patch % width]).detach()
                rows[side].append(F.normalize(vector.double(), dim=0))
    z, n = torch.stack(rows[0] + rows[1]), len(images)
    similarity, total = (z @ z.T / tau).tolist(), 0.0
    for i in range(2 * n):
        positive = similarity[i][(i + n) % (2 * n)]
        others = [math.exp(similarity[i][j]) for j in range(2 * n) if images[j % n] != images[i % n]]
        total += math.log(math.exp(positive) + sum(others)) - positive
    return total / (2 * n)


@pytest.mark.parametrize("rule", ["geometric", "feature"])
def test_loss_equals_the_oracle(rule: str) -> None:
    views, method = make_views(3, 0), make_method(correspondence=rule)
    output = method(views, draws(7), True)
    assert float(output.loss.detach()) == pytest.approx(oracle(method, views, 0.2), rel=1e-4)
    assert {"patches/loss", "patches/positive", "patches/negative"} == output.terms.keys()


def test_image_level_term_is_added_with_its_weight() -> None:
    views, method = make_views(3, 0), make_method(global_weight=0.5)
    assert method.global_head is not None
    assert method.momentum_global_head is not None
    output = method(views, draws(7))
    with torch.no_grad():
        q = method.global_head(method.trunk.encode(views.query)[-1])
        k = method.momentum_global_head(method.momentum_trunk.module.encode(views.key)[-1])
    image = nt_xent(q, k, [0, 1, 2], 0.2)
    assert float(output.terms["image/loss"]) == pytest.approx(image, rel=1e-4)
    dense = float(output.terms["patches/loss"])
    assert float(output.loss.detach()) == pytest.approx(dense + 0.5 * image, rel=1e-5)


def test_only_the_trained_encoder_has_a_gradient() -> None:
    views, method = make_views(3, 0), make_method(global_weight=0.5, patches_per_image=9)
    method(views, draws(0)).loss.backward()
    for name, parameter in method.named_parameters():
        learns = not name.startswith(("momentum", "trunk.decoder"))
        assert (parameter.grad is not None) == learns, name
        assert not learns or bool(parameter.grad.abs().sum() > 0), name


def test_the_momentum_encoder_is_updated() -> None:
    method = make_method(momentum={"start": 0.75})
    fast = next(method.trunk.parameters()).detach().clone()
    slow = next(method.momentum_trunk.parameters()).detach().clone()
    head = next(method.patch_head.parameters())
    with torch.no_grad():
        head.add_(1.0)
    before = next(method.momentum_patch_head.parameters()).detach().clone()
    method.after_step(0.5)
    assert torch.allclose(next(method.momentum_trunk.parameters()), 0.75 * slow + 0.25 * fast)
    assert torch.allclose(next(method.momentum_patch_head.parameters()), before + 0.25)


def test_drawn_patches_exist_are_distinct_and_belong_to_their_slot() -> None:
    views, method = make_views(4, 0), make_method(patches_per_image=7)
    query = method.trunk.encode(views.query)[-1]
    matches = match_patches("geometric", views.geometry, query, query)
    drawn = method._draw(matches, draws(3))
    assert drawn.valid.shape == (4, 7)
    assert bool(drawn.valid.all())
    for image in range(4):
        patches = drawn.key[image].tolist()
        assert len(set(patches)) == 7
        partner = dict(zip(matches.key[image].tolist(), matches.query[image].tolist(), strict=True))
        assert [partner[patch] for patch in patches] == drawn.query[image].tolist()
    last = Draws(3, 0, (2, 3))
    part = method._draw(type(matches)(*(x[2:] for x in matches)), last)
    assert torch.equal(part.key, drawn.key[2:])
    assert not torch.equal(drawn.key[0], drawn.key[1])


def test_more_patches_than_exist_leave_the_rest_out() -> None:
    views, method = make_views(3, 0), make_method(patches_per_image=19)
    query = method.trunk.encode(views.query)[-1]
    matches = match_patches("geometric", views.geometry, query, query)
    assert int(matches.valid.sum(dim=1).min()) < 19 < matches.valid.shape[1]
    drawn = method._draw(matches, draws(0))
    assert torch.equal(drawn.valid.sum(dim=1), matches.valid.sum(dim=1).clamp_max(19))
    assert bool(method(views, draws(0)).loss.isfinite())
