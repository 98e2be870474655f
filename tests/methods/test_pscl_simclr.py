"""The loss against an oracle with loops over images, scales, classes and rows."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pscl_hpc.config import ViewConfig
from pscl_hpc.methods import Method, Views, patch_purity
from pscl_hpc.methods.pscl_simclr import PsclSimclr, PsclSimclrConfig
from pscl_hpc.models.unet import UNet, UNetConfig
from pscl_hpc.seeding import Draws
from pscl_hpc.views import draw_geometry, paired_patches, partner_patches, warp
from tests.helpers import annotated_setting, micrograph


def make_views(batch: int, references: int, size: tuple[int, int] = (32, 40)) -> Views:
    pictures = [micrograph(i, size) for i in range(batch)]
    images = torch.stack([torch.from_numpy(image).float() / 255 for image, _ in pictures])[:, None]
    geometry = draw_geometry(batch, ViewConfig(size=size), torch.Generator().manual_seed(4))
    labels = torch.stack([torch.from_numpy(mask) for _, mask in pictures])
    return Views(
        images,
        warp(images, geometry),
        geometry,
        references,
        labels,
        torch.ones(batch, dtype=torch.bool),
        torch.full((batch,), -1),
    )


def draws(seed: int) -> Draws:
    return Draws(seed, 0, tuple(range(8)))


def make_method(**changes: object) -> PsclSimclr:
    torch.manual_seed(0)
    settings = {"templates_per_class": 2, "projection": 16, "hidden": 16, **changes}
    trunk = UNet(UNetConfig(widths=(4, 8, 8, 16)))
    return PsclSimclr(trunk, PsclSimclrConfig.model_validate(settings), annotated_setting(3))


def nt_xent(q: Tensor, k: Tensor, classes: list[int], tau: float) -> float:
    """NT-Xent of classes, row by row, in double precision."""
    z = F.normalize(torch.cat((q, k)).double(), dim=1)
    total, n = 0.0, len(q)
    for i in range(2 * n):
        positive = (i + n) % (2 * n)
        logits = [float(z[i] @ z[positive]) / tau]
        logits += [float(z[i] @ z[j]) / tau for j in range(2 * n) if classes[j % n] != classes[i % n]]
        total += math.log(sum(math.exp(x) for x in logits)) - logits[0]
    return total / (2 * n)


def assert_all_learn(method: Method, views: Views) -> None:
    """Every parameter has a gradient."""
    method(views, draws(0)).loss.backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert bool(parameter.grad.abs().sum() > 0), name


@pytest.mark.parametrize("references", [1, 2])
def test_loss_equals_the_oracle(references: int) -> None:
    views, method = make_views(4, references), make_method(scale_weights=(1.0, 0.5, 2.0))
    output = method(views, draws(7), True)
    query, key = method.trunk(views.query), method.trunk(views.key)
    samples = method.sample_patches(views, key, draws(7))
    losses = []
    for scale, sample in enumerate(samples):
        width = key.scales[scale].shape[3]
        partners = partner_patches(
            views.geometry, sample.key_patches.clamp_min(0), *key.scales[scale].shape[2:]
        )
        q, k, classes = [], [], []
        for image in range(4):
            for template, patch in enumerate(sample.key_patches[image].tolist()):
                if patch < 0:
                    continue
                partner = int(partners[image, template])
                head = method.patch_heads[scale]
                q.append(head(query.scales[scale][image, :, partner // width, partner % width]))
                k.append(head(key.scales[scale][image, :, patch // width, patch % width]))
                classes.append(int(sample.classes[template]))
        losses.append(nt_xent(torch.stack(q).detach(), torch.stack(k).detach(), classes, 0.5))
        assert float(output.terms[f"scale{scale}/loss"]) == pytest.approx(losses[-1], rel=1e-4)
    image = nt_xent(
        method.global_head(query.bottleneck).detach(),
        method.global_head(key.bottleneck).detach(),
        list(range(4)),
        0.5,
    )
    assert float(output.terms["image/loss"]) == pytest.approx(image, rel=1e-4)
    patch = (1.0 * losses[0] + 0.5 * losses[1] + 2.0 * losses[2]) / 3
    assert float(output.loss.detach()) == pytest.approx(0.3 * image + 0.7 * patch, rel=1e-4)


def test_both_views_and_all_parameters_learn() -> None:
    assert_all_learn(make_method(), make_views(3, 1))


def test_references_alone_and_absent_classes() -> None:
    method = make_method()
    alone = make_views(1, 1)
    assert bool(method(alone, draws(0)).loss.isfinite())
    views = make_views(3, 1)
    views.labels.zero_()
    output = method(views, draws(0), True)
    assert bool(output.loss.isfinite())
    assert float(output.terms["scale0/templates"]) == 2, "two templates of the one remaining class"
    views.labels.fill_(255)
    output = method(views, draws(0), True)
    assert bool(output.loss.isfinite())
    assert float(output.terms["scale0/loss"]) == 0, "without annotation there is no patch loss"


@pytest.mark.parametrize("rule", ["pure", "released"])
def test_ignored_classes_and_references_without_annotation_give_no_templates(rule: str) -> None:
    trunk = UNet(UNetConfig(widths=(4, 8, 8, 16)))
    config = PsclSimclrConfig.model_validate({"templates_per_class": 2, "template_rule": rule})
    method = PsclSimclr(trunk, config, annotated_setting(3, (2,)))
    views = make_views(4, 2)
    views.labels[1] = 255
    for sample in method.sample_patches(views, trunk(views.key), draws(0)):
        # Images 0 and 2 use reference 0, images 1 and 3 reference 1.
        assert not bool(sample.valid[:, sample.classes == 2].any())
        assert bool(sample.valid[[0, 2]][:, sample.classes == 0].any())
        assert not bool(sample.valid[[1, 3]].any())


def test_every_image_uses_the_templates_of_its_reference() -> None:
    views, method = make_views(6, 2), make_method(templates_per_class=3)
    key = method.trunk(views.key)
    for scale, sample in enumerate(method.sample_patches(views, key, draws(0))):
        with torch.no_grad():
            projected = method.patch_heads[scale](key.scales[scale].flatten(2).transpose(1, 2))
        vectors = F.normalize(projected.double(), dim=2)
        paired = paired_patches(views.geometry, *key.scales[scale].shape[2:])
        for image in range(2, 6):
            own = sample.key_patches[image % 2].tolist()
            free = paired[image].clone()
            for template, patch in zip(own, sample.key_patches[image].tolist(), strict=True):
                assert (patch < 0) == (template < 0)
                if patch >= 0:
                    similarity = vectors[image] @ vectors[image % 2, template]
                    assert bool(free[patch]), "the patch has no partner or was taken before"
                    assert float(similarity[patch]) >= float(similarity[free].max()) - 1e-5
                    free[patch] = False


def test_purity_of_references_is_one_and_unknown_is_nan() -> None:
    views, method = make_views(4, 1), make_method()
    views.labels[3] = 255
    key = method.trunk(views.key)
    for scale, sample in enumerate(method.sample_patches(views, key, draws(0))):
        purity = patch_purity(views, sample, *key.scales[scale].shape[2:])
        assert float(purity[0]) == 1.0
        assert math.isnan(float(purity[3]))
        assert bool(((purity[1:3] >= 0) & (purity[1:3] <= 1)).all())


def label_shown(views: Views, image: int, y: float, x: float) -> int:
    """Mask at a position (share of height and width) of view k, by flipping, rotating and cropping the pixels."""
    flip, turns, *crop = (getattr(views.geometry, f.name)[image].item() for f in fields(views.geometry))
    mask = views.labels[image].flip(0) if flip else views.labels[image]
    mask = torch.rot90(mask, turns)
    place = []
    for at, first, kept, size in zip((y, x), crop[:2], crop[2:], mask.shape, strict=True):
        start, stop = math.floor(first * size), math.floor(first * size + kept * size)
        place.append(start + min(max(round(at * (stop - start) - 0.5), 0), stop - start - 1))
    return int(mask[place[0], place[1]])


def test_purity_counts_the_known_patches_by_hand() -> None:
    views, method = make_views(5, 1), make_method(templates_per_class=24)
    views.labels[2, :, :20] = 255
    views.labels[3] = 255
    views.comparable[4] = False  # its classes are others, though their numbers are the same
    key = method.trunk(views.key)
    for scale, sample in enumerate(method.sample_patches(views, key, draws(0))):
        height, width = key.scales[scale].shape[2:]
        purity = patch_purity(views, sample, height, width).tolist()
        assert [math.isnan(value) for value in purity] == [False, False, False, True, True]
        for image, all_known in ((0, True), (1, True), (2, False)):
            patches = [
                (
                    label_shown(views, image, (patch // width + 0.5) / height, (patch % width + 0.5) / width),
                    own,
                )
                for patch, own in zip(
                    sample.key_patches[image].tolist(), sample.classes.tolist(), strict=True
                )
                if patch >= 0
            ]
            known = [(found, own) for found, own in patches if found != 255]
            assert (len(known) == len(patches)) == all_known
            hits = sum(found == own for found, own in known)
            assert 0 < hits < len(known) or image == 0
            assert purity[image] == pytest.approx(hits / len(known))


def test_labels_of_unlabelled_images_do_not_affect_the_loss() -> None:
    method = make_method()
    first, second = make_views(4, 1), make_views(4, 1)
    second.labels[1:] = torch.randint(0, 3, second.labels[1:].shape, dtype=torch.uint8)
    a = method(first, draws(0)).loss
    method = make_method()
    b = method(second, draws(0)).loss
    assert torch.equal(a, b)


def test_patches_are_taken_once() -> None:
    views, method = make_views(4, 1), make_method(templates_per_class=4)
    for sample in method.sample_patches(views, method.trunk(views.key), draws(0)):
        for row in sample.key_patches:
            taken = row[row >= 0].tolist()
            assert len(taken) == len(set(taken))


@pytest.mark.parametrize(
    "changes",
    [{"matching": "dot"}, {"exclusion": "released"}, {"template_rule": "released"}, {"antialias": False}],
)
def test_released_options_train(changes: dict[str, object]) -> None:
    method = make_method(**changes)
    assert bool(method(make_views(3, 1), draws(0)).loss.isfinite())
