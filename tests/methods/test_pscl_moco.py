"""PSCL-MoCo over several steps against loops over images, scales, patches and queued prototypes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pscl_hpc.methods import Views
from pscl_hpc.methods.base import PatchSample
from pscl_hpc.methods.pscl_moco import PsclMoco, PsclMocoConfig, class_weights
from pscl_hpc.models.unet import UNet, UNetConfig
from pscl_hpc.views import class_shares, partner_patches, warp
from tests.helpers import annotated_setting

from .queue_oracle import Average, draws_of_step, info_nce, unit, views_of_step

CLASSES = 3
RELEASED = {
    "scale_targets": False,
    "normalise_targets": False,
    "normalise_prototypes": False,
    "queue_references": True,
}


def make_method(*, images_per_step: int = 3, ignored: tuple[int, ...] = (), **changes: object) -> PsclMoco:
    torch.manual_seed(0)
    settings = {"templates_per_class": 2, "projection": 8, "hidden": 8, "queue_steps": 2, **changes}
    trunk = UNet(UNetConfig(widths=(4, 8, 8, 16)))
    config = PsclMocoConfig.model_validate(settings)
    return PsclMoco(trunk, config, annotated_setting(CLASSES, ignored, images_per_step=images_per_step))


@dataclass
class Entry:
    key: Tensor
    group: int
    condition: int
    age: int = 1


def targets(
    group: int, condition: int, entries: list[Entry], same: float, anyone: float, scale: float
) -> list[float]:
    """Targets by production batch, class and age, entry by entry."""
    found = []
    for entry in entries:
        y = 0.0
        if entry.group == group:
            y = anyone**entry.age if anyone else 0.0
            if condition >= 0 and entry.condition == condition:
                y += same**entry.age
        found.append(scale * y)
    return found


def share_of_class(views: Views, sample: PatchSample, height: int, width: int) -> Callable[[int, int], float]:
    """Share of a template's class in its patch, by image and template; image i uses reference i mod R."""
    own = views.geometry[: views.references]
    one_hot = F.one_hot(views.labels[: views.references].long(), CLASSES).permute(0, 3, 1, 2)
    shares = class_shares(warp(one_hot.double(), own), own, height, width, antialias=True)

    def of(image: int, template: int) -> float:
        giver = image if image < views.references else (image - views.references) % views.references
        patch = int(sample.key_patches[giver, template])
        return float(shares[giver, int(sample.classes[template]), patch // width, patch % width])

    return of


@pytest.mark.parametrize("changes", [{}, RELEASED], ids=["ours", "released"])
def test_steps_equal_the_simulation(changes: dict[str, object]) -> None:
    """Two references, each for one other image, with patches of many different purities."""
    method = make_method(
        images_per_step=4, **changes, purity=0.55, momentum={"start": 0.9}, scale_weights=(1.0, 0.5, 2.0)
    )
    config, scale = method.config, 9 / 4 if method.config.scale_targets else 1.0
    optimiser = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    average = Average(method.trunk, method.global_head, method.patch_heads)
    images: deque[list[Entry]] = deque(maxlen=8)
    prototypes: list[deque[list[Entry]]] = [deque(maxlen=8) for _ in range(3)]
    impure = 0
    for step in range(4):
        views = views_of_step(step, 4, 2)
        production_batches = views.production_batches.tolist()
        with torch.no_grad():
            query, key = method.trunk(views.query), method.momentum_trunk.module(views.key)
            q, k = method.global_head(query.bottleneck), method.momentum_global_head.module(key.bottleneck)
        samples = method.sample_patches(views, key, draws_of_step(step))
        entries = [entry for image in images for entry in image]
        wanted_targets = [
            targets(0, condition, entries, config.image_production_batch_decay, 0.0, scale)
            for condition in production_batches
        ]
        keys = [entry.key for entry in entries]
        losses = info_nce(q, k, keys, 0.5, wanted_targets, normalise=config.normalise_targets)
        image_loss = sum(losses) / 4
        fresh_images = [
            [Entry(unit(row), 0, production_batches[i])] if i > 1 or config.queue_references else []
            for i, row in enumerate(k)
        ]
        patch_loss, patches_of_all = 0.0, sum(int((sample.key_patches >= 0).sum()) for sample in samples)
        fresh_prototypes: list[list[list[Entry]]] = []
        for number, sample in enumerate(samples):
            height, width = key.scales[number].shape[2:]
            partners = partner_patches(views.geometry, sample.key_patches.clamp_min(0), height, width)
            entries = [entry for image in prototypes[number] for entry in image]
            share_of = share_of_class(views, sample, height, width)
            total, count, fresh = 0.0, 0, []
            for image in range(4):
                of_image: list[Entry] = []
                for group in range(CLASSES):
                    places = [
                        t
                        for t, of in enumerate(sample.classes.tolist())
                        if of == group and int(sample.key_patches[image, t]) >= 0
                    ]
                    shares = [share_of(image, t) for t in places]
                    impure += sum(share < 0.9 for share in shares)
                    mean = torch.zeros(8, dtype=torch.float64)
                    for t, share in zip(places, shares, strict=True):
                        v = share / sum(shares)
                        at = (int(partners[image, t]), int(sample.key_patches[image, t]))
                        with torch.no_grad():
                            row, positive = (
                                head[number](features.scales[number][image, :, patch // width, patch % width])
                                for head, features, patch in (
                                    (method.patch_heads, query, at[0]),
                                    (method.momentum_patch_heads.module, key, at[1]),
                                )
                            )
                        y = targets(
                            group,
                            production_batches[image],
                            entries,
                            config.patch_production_batch_decay,
                            config.patch_class_decay,
                            scale,
                        )
                        (loss,) = info_nce(
                            row[None],
                            positive[None],
                            [entry.key for entry in entries],
                            0.5,
                            [y],
                            normalise=config.normalise_targets,
                        )
                        total, count = total + v * len(places) * loss, count + 1
                        mean += v * unit(positive)
                    if places:
                        stored = unit(mean) if config.normalise_prototypes else mean
                        of_image.append(Entry(stored, group, production_batches[image]))
                fresh.append(of_image)
            fresh_prototypes.append(fresh)
            weight = (1.0, 0.5, 2.0)[number] * int((sample.key_patches >= 0).sum()) / patches_of_all
            patch_loss += weight * total / count
        output = method(views, draws_of_step(step), True)
        close = {"rel": 2e-4, "abs": 1e-5}
        assert float(output.terms["image/loss"]) == pytest.approx(image_loss, **close)
        assert float(output.loss.detach()) == pytest.approx(0.3 * image_loss + 0.7 * patch_loss, **close)
        optimiser.zero_grad()
        output.loss.backward()
        optimiser.step()
        method.after_step((step + 1) / 4)
        average.follow(0.9)
        average.assert_equals(method.momentum_trunk, method.momentum_global_head, method.momentum_patch_heads)
        for stored, fresh in ((images, fresh_images), *zip(prototypes, fresh_prototypes, strict=True)):
            for image in stored:
                for entry in image:
                    entry.age += 1
            stored.extend(fresh)
        for queue, stored in (
            (method.image_queue, images),
            *zip(method.prototype_queues, prototypes, strict=True),
        ):
            assert_queue(queue, stored)
    assert impure > 20


def assert_queue(queue: torch.nn.Module, stored: deque[list[Entry]]) -> None:
    for place in range(len(stored)):
        slot = (int(queue.cursor) - len(stored) + place) % 8
        kept = queue.groups[slot] >= 0
        assert queue.groups[slot][kept].tolist() == [entry.group for entry in stored[place]]
        for key, entry in zip(queue.keys[slot][kept], stored[place], strict=True):
            torch.testing.assert_close(key.double(), entry.key, rtol=1e-4, atol=1e-5)
            assert (int(queue.production_batches[slot]), int(queue.ages[slot])) == (
                entry.condition,
                entry.age,
            )


def own_share(batch: int, *, scale_targets: bool) -> float:
    """1 / Y of the image loss, from its value: with zero keys the loss is Y log(e^p + Q) - p, p the positive."""
    method = make_method(images_per_step=batch + 1, scale_targets=scale_targets, normalise_targets=False)
    queue, views = (
        method.image_queue,
        replace(views_of_step(0, 4, 1), production_batches=torch.zeros(4, dtype=torch.int64)),
    )
    queue.groups.zero_()
    queue.production_batches.zero_()
    queue.ages.copy_(torch.arange(2).repeat_interleave(batch + 1) + 1)
    with torch.no_grad():
        q = method.global_head(method.trunk(views.query).bottleneck)
        k = method.momentum_global_head.module(method.momentum_trunk.module(views.key).bottleneck)
        loss = method(views, draws_of_step(0)).terms["image/loss"]
    p = F.cosine_similarity(q.double(), k.double()) / 0.5
    log_sum = (p.exp() + len(queue.ages)).log()
    return float(log_sum.mean() / (loss + p.mean()))


def test_share_of_the_own_target_does_not_depend_on_the_batch() -> None:
    shares = [own_share(batch, scale_targets=True) for batch in (3, 8, 64)]
    assert shares == pytest.approx([1 / (1 + 9 * (0.2 + 0.04))] * 3, rel=1e-4)
    trap = [own_share(batch, scale_targets=False) for batch in (8, 64)]
    assert trap == pytest.approx([1 / (1 + 9 * 0.24), 1 / (1 + 65 * 0.24)], rel=1e-4)


def run(method: PsclMoco, **changes: object) -> list[float]:
    losses = []
    for step in range(3):
        views = replace(views_of_step(step, 3, 1), **changes)
        output = method(views, draws_of_step(step), True)
        output.loss.backward()
        method.after_step(0.0)
        losses.append(float(output.loss.detach()))
    return losses


def test_unknown_production_batches_match_nothing() -> None:
    """Without images of the same production batch, its decays have no effect."""
    unknown = torch.full((3,), -1)
    first, second = (
        run(
            make_method(image_production_batch_decay=d, patch_production_batch_decay=d),
            production_batches=unknown,
        )
        for d in (0.1, 0.9)
    )
    assert first == second
    known = run(
        make_method(patch_production_batch_decay=0.9), production_batches=torch.zeros(3, dtype=torch.int64)
    )
    assert known[0] == first[0] == 0.0
    assert known[1:] != first[1:]


def test_absent_ignored_and_unknown_classes() -> None:
    labels = views_of_step(0, 3, 1).labels.clone()
    method = make_method()
    losses = run(method, labels=torch.where(labels == 2, 0, labels))
    assert all(loss == loss and loss < 100 for loss in losses)
    for queue in method.prototype_queues:
        assert sorted(set(queue.groups.flatten().tolist())) == [-1, 0, 1]
    ignoring = make_method(ignored=(1,))
    run(ignoring)
    for queue in ignoring.prototype_queues:
        assert 1 not in queue.groups.flatten().tolist()
    nothing = make_method()
    run(nothing, labels=torch.full_like(labels, 255))
    for queue in nothing.prototype_queues:
        assert set(queue.groups.flatten().tolist()) == {-1}
    assert bool((nothing.image_queue.groups == 0).any()), "images are still contrasted"


def test_references_are_in_the_prototype_queues_but_not_in_the_image_queue() -> None:
    method = make_method()
    run(method)
    assert method.image_queue.groups.flatten().tolist() == [-1, 0, 0] * 2
    assert bool((method.prototype_queues[0].groups[0] >= 0).any())


def test_labels_of_unlabelled_images_do_not_affect_the_loss() -> None:
    labels = views_of_step(0, 3, 1).labels.clone()
    other = labels.clone()
    other[1:] = torch.randint(0, 3, other[1:].shape, dtype=torch.uint8)
    assert run(make_method(), labels=labels) == run(make_method(), labels=other)


def test_weights_of_patches_within_a_class() -> None:
    patches = torch.tensor([[5, 7, -1, -1, 3, 4], [1, -1, 2, 3, 0, 9]])
    shares = torch.tensor([[1.0, 0.5, 0.0, 0.0, 0.0, 0.0], [1.0, 0.5, 1.0, 1.0, 0.9, 0.3]])
    found = class_weights(patches >= 0, shares, 3)
    wanted = [[[2 / 3, 1 / 3], [0, 0], [0.5, 0.5]], [[1, 0], [0.5, 0.5], [0.75, 0.25]]]
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [{"matching": "dot"}, {"exclusion": "released"}, {"template_rule": "released"}, RELEASED],
)
def test_released_options_train(changes: dict[str, object]) -> None:
    losses = run(make_method(**changes))
    assert all(0 <= loss < 100 for loss in losses)
