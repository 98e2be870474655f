"""Methods under autocast: the loss of bfloat16 features is close to that of float32 ones, and gradients are finite."""

from __future__ import annotations

import copy

import pytest
import torch

from pscl_hpc.methods import Method

from . import test_clustering, test_core, test_ideal
from .test_pscl_simclr import draws, make_views


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
