"""The loss on a CPU: tiles against the whole matrix.

Run by hand: `pytest bench/test_bench_patch_nt_xent.py --benchmark-only`, which rewrites
`bench/results/cpu-patch-nt-xent.json`.
"""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.forms import Forms
from pscl_kernels import patch_nt_xent

ROWS, WIDTH, GROUPS, TEMPERATURE = 16_384, 64, 4, 0.5
SHAPE = {"rows": ROWS, "width": WIDTH, "groups": GROUPS, "dtype": "float32", "temperature": TEMPERATURE}


def materialised(q: Tensor, k: Tensor, groups: Tensor) -> Tensor:
    """The loss in plain torch: one matrix product, one mask, one logsumexp."""
    n = q.shape[0]
    z = torch.nn.functional.normalize(torch.cat([q, k]), dim=1)
    group = torch.cat([groups, groups])
    logits = z @ z.T / TEMPERATURE
    positive = torch.cat([logits.diagonal(n), logits.diagonal(-n)])
    negatives = torch.logsumexp(logits.masked_fill(group[:, None] == group[None, :], -math.inf), 1)
    return (torch.logaddexp(positive, negatives) - positive).mean()


def chunked(q: Tensor, k: Tensor, groups: Tensor) -> Tensor:
    return patch_nt_xent(q, k, groups, temperature=TEMPERATURE, backend="chunked")


IMPLEMENTATIONS = {"materialised": materialised, "chunked": chunked}


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    n = ROWS // 2
    q, k = torch.randn(n, WIDTH, requires_grad=True), torch.randn(n, WIDTH, requires_grad=True)
    return q, k, torch.arange(n) // 16 % GROUPS


@pytest.fixture(scope="module")
def forms(request: pytest.FixtureRequest) -> Iterator[Forms]:
    forms = Forms("cpu-patch-nt-xent", "chunked", tuple(IMPLEMENTATIONS), SHAPE)
    yield forms
    forms.record(str(request.config.getoption("benchmark_timer")))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_forward_and_backward(name: str, inputs: Any, forms: Forms, benchmark: Any) -> None:
    q, k, groups = inputs

    def step() -> None:
        q.grad = k.grad = None
        IMPLEMENTATIONS[name](q, k, groups).backward()  # type: ignore[no-untyped-call]

    forms.measure(name, benchmark, step, rounds=5, warmup_rounds=1)


def test_same_answer(inputs: Any) -> None:
    q, k, groups = inputs
    q, k, groups = (x.detach()[::16] for x in (q, k, groups))
    torch.testing.assert_close(chunked(q, k, groups), materialised(q, k, groups))
