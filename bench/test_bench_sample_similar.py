"""Similarity sampling on a CPU: tiles against the loop over templates.

Run by hand: `pytest bench/test_bench_sample_similar.py --benchmark-only`, which rewrites
`bench/results/cpu-sample-similar.json`.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.forms import Forms
from pscl_kernels import sample_similar

BATCH, TEMPLATES, WIDTH, PLACES = 8, 64, 64, 35_344
SHAPE = {
    "images": BATCH,
    "templates": TEMPLATES,
    "width": WIDTH,
    "patches_per_image": PLACES,
    "dtype": "float32",
}


def loop(templates: Tensor, patches: Tensor, cosine: bool = True) -> Tensor:
    """The loop of the released code: image by image, template by template.

    On cosines it gives the result of the operation. On plain dot products it is cheaper, but the result differs unless
    all norms are equal.
    """
    if cosine:
        templates = torch.nn.functional.normalize(templates, dim=1)
    taken = torch.empty(patches.shape[0], templates.shape[0], dtype=torch.int64)
    for image in range(patches.shape[0]):
        features = torch.nn.functional.normalize(patches[image], dim=1) if cosine else patches[image]
        similarity = torch.einsum("td,pd->tp", templates, features)
        highest = similarity.max()
        for template in range(templates.shape[0]):
            patch = similarity[template].argmax()
            taken[image, template] = patch
            similarity[:, patch] -= highest
    return taken


def loop_of_dots(templates: Tensor, patches: Tensor) -> Tensor:
    return loop(templates, patches, cosine=False)


def chunked(templates: Tensor, patches: Tensor) -> Tensor:
    return sample_similar(templates, patches, backend="chunked")


IMPLEMENTATIONS = {"loop": loop, "loop_of_dots": loop_of_dots, "chunked": chunked}


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(TEMPLATES, WIDTH), torch.randn(BATCH, PLACES, WIDTH)


@pytest.fixture(scope="module")
def forms(request: pytest.FixtureRequest) -> Iterator[Forms]:
    forms = Forms("cpu-sample-similar", "chunked", tuple(IMPLEMENTATIONS), SHAPE)
    yield forms
    forms.record(str(request.config.getoption("benchmark_timer")))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_sampling(name: str, inputs: Any, forms: Forms, benchmark: Any) -> None:
    forms.measure(name, benchmark, lambda: IMPLEMENTATIONS[name](*inputs), rounds=15, warmup_rounds=3)


def test_same_answer(inputs: Any) -> None:
    templates, patches = inputs
    assert torch.equal(chunked(templates, patches), loop(templates, patches))
