"""From decoder maps to the patch loss on a CPU, forward and backward: heads on sampled patches against heads on maps.

Run by hand: `pytest bench/test_bench_sampling_path.py --benchmark-only --benchmark-timer=time.process_time`, which
rewrites `bench/results/cpu-sampling-path.json`.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.forms import Forms
from pscl_hpc.methods.common.patches import gather_patches, patches_of
from pscl_hpc.models import PatchHead
from pscl_kernels import patch_nt_xent, sample_similar

IMAGES, CHANNELS, SIDE, TEMPLATES, CLASSES, PROJECTION = 8, 64, 188, 64, 4, 64
SHAPE = {"images": IMAGES, "channels": CHANNELS, "grid": f"{SIDE} x {SIDE}", "templates": TEMPLATES}


def loss_of(q: Tensor, k: Tensor) -> Tensor:
    groups = (torch.arange(TEMPLATES) // (TEMPLATES // CLASSES)).repeat(IMAGES)
    return patch_nt_xent(q.flatten(0, 1), k.flatten(0, 1), groups)


def separate(head: PatchHead, query: Tensor, key: Tensor, templates: Tensor) -> Tensor:
    """Both maps are projected, patches are sampled, projections are gathered: one operation after another."""
    q, k = head(patches_of(query)), head(patches_of(key))
    patches = sample_similar(templates, k.detach())[..., None].expand(-1, -1, PROJECTION)
    return loss_of(q.gather(1, patches), k.gather(1, patches))


def sampled(head: PatchHead, query: Tensor, key: Tensor, templates: Tensor) -> Tensor:
    """As in the methods: sampling image by image without gradient, then only the sampled patches are projected."""
    with torch.no_grad():
        patches = torch.cat([sample_similar(templates, head(patches_of(image[None]))) for image in key])
    return loss_of(head(gather_patches(query, patches)), head(gather_patches(key, patches)))


IMPLEMENTATIONS = {"separate": separate, "sampled": sampled}


@pytest.fixture(scope="module")
def inputs() -> tuple[Any, ...]:
    torch.manual_seed(0)
    query, key = (
        torch.randn(IMAGES, CHANNELS, SIDE, SIDE)
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_()
        for _ in range(2)
    )
    head = PatchHead(CHANNELS, hidden=128, projection=PROJECTION, groups=4)
    return head, query, key, torch.randn(TEMPLATES, PROJECTION)


@pytest.fixture(scope="module")
def forms(request: pytest.FixtureRequest) -> Iterator[Forms]:
    forms = Forms("cpu-sampling-path", "sampled", tuple(IMPLEMENTATIONS), SHAPE)
    yield forms
    forms.record(str(request.config.getoption("benchmark_timer")))


def step(name: str, inputs: tuple[Any, ...]) -> Tensor:
    head, query, key, _ = inputs
    for leaf in (query, key, *head.parameters()):
        leaf.grad = None
    loss = IMPLEMENTATIONS[name](*inputs)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_path(name: str, inputs: Any, forms: Forms, benchmark: Any) -> None:
    forms.measure(name, benchmark, lambda: step(name, inputs), rounds=7, warmup_rounds=2)


def test_same_answer(inputs: Any) -> None:
    _, query, key, _ = inputs
    found = {}
    for name in IMPLEMENTATIONS:
        found[name] = (step(name, inputs), query.grad.clone(), key.grad.clone())
    for ours, theirs in zip(found["sampled"], found["separate"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
