"""DenseCL over several steps against loops over patches."""

from __future__ import annotations

from collections import deque

import pytest
import torch
from torch import Tensor

from pscl_hpc.methods import Setting
from pscl_hpc.methods.densecl import DenseCl, DenseClConfig
from pscl_hpc.models.unet import UNet, UNetConfig

from .queue_oracle import Average, draws_of_step, info_nce, train, unit, views_of_step


def make_method(**changes: object) -> DenseCl:
    torch.manual_seed(0)
    config = DenseClConfig.model_validate({"projection": 8, "hidden": 8, "queue_steps": 2, **changes})
    return DenseCl(UNet(UNetConfig(widths=(4, 8, 8, 16))), config, Setting(images_per_step=2))


@pytest.mark.parametrize("weight", [0.5, 0.8])
def test_steps_equal_the_simulation(weight: float) -> None:
    method = make_method(momentum={"start": 0.7}, dense_weight=weight)
    optimiser = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.5)
    average = Average(method.trunk, method.global_head, method.dense_head)
    images: deque[Tensor] = deque(maxlen=4)
    pooled: deque[Tensor] = deque(maxlen=4)
    for step in range(4):
        views = views_of_step(step, 2)
        with torch.no_grad():
            feature_q = method.trunk.encode(views.query)[-1]
            feature_k = method.momentum_trunk.module.encode(views.key)[-1]
            q, k = method.global_head(feature_q), method.momentum_global_head.module(feature_k)
            dense_q, dense_k = method.dense_head(feature_q), method.momentum_dense_head.module(feature_k)
        rows, positives = [], []
        for image in range(2):
            patches = [(y, x) for y in range(feature_q.shape[2]) for x in range(feature_q.shape[3])]
            for y, x in patches:
                here = unit(feature_q[image, :, y, x])
                best = max(
                    patches, key=lambda c, i=image, h=here: float(h @ unit(feature_k[i, :, c[0], c[1]]))
                )
                rows.append(dense_q[image, :, y, x])
                positives.append(dense_k[image, :, best[0], best[1]])
        image_loss = sum(info_nce(q, k, list(images), 0.2)) / 2
        patch_loss = sum(info_nce(torch.stack(rows), torch.stack(positives), list(pooled), 0.2)) / len(rows)
        output = method(views, draws_of_step(step))
        close = {"rel": 1e-4, "abs": 1e-5}
        assert float(output.terms["image/loss"]) == pytest.approx(image_loss, **close)
        assert float(output.terms["patches/loss"]) == pytest.approx(patch_loss, **close)
        wanted = (1 - weight) * image_loss + weight * patch_loss
        assert float(output.loss.detach()) == pytest.approx(wanted, **close)
        optimiser.zero_grad()
        output.loss.backward()
        optimiser.step()
        method.after_step(0.5)
        average.follow(0.7)
        average.assert_equals(method.momentum_trunk, method.momentum_global_head, method.momentum_dense_head)
        images.extend(unit(row) for row in k)
        pooled.extend(unit(grid.double().mean(dim=(1, 2))) for grid in dense_k)
        for queue, entries in ((method.queue, images), (method.dense_queue, pooled)):
            order = [(int(queue.cursor) + i) % 4 for i in range(4)][4 - len(entries) :]
            torch.testing.assert_close(
                queue.keys[order, 0].double(), torch.stack(list(entries)), rtol=1e-4, atol=1e-5
            )


def test_training_lowers_both_losses() -> None:
    outputs = train(make_method(queue_steps=4), 60, 2)
    losses = [torch.stack((one.terms["image/loss"], one.terms["patches/loss"])) for one in outputs]
    first, last = torch.stack(losses[5:15]).mean(dim=0), torch.stack(losses[-10:]).mean(dim=0)
    assert bool((last < 0.95 * first).all()), (first, last)
