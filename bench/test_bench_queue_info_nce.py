"""The queue loss on a CPU: tiles against all similarities and all labels.

Run by hand: `pytest bench/test_bench_queue_info_nce.py --benchmark-only --benchmark-timer=time.process_time`, which
rewrites `bench/results/cpu-queue-info-nce.json`.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.forms import Forms
from pscl_kernels import queue_info_nce

ROWS, ENTRIES, WIDTH, GROUPS, SUBGROUPS, TEMPERATURE = 4_096, 16_384, 64, 4, 8, 0.5
SHAPE = {
    "rows": ROWS,
    "entries": ENTRIES,
    "width": WIDTH,
    "groups": GROUPS,
    "subgroups": SUBGROUPS,
    "dtype": "float32",
    "temperature": TEMPERATURE,
}


def materialised(q: Tensor, k: Tensor, queue: Tensor, labels: dict[str, Any]) -> Tensor:
    """The loss in plain torch: one matrix product, one matrix of labels, cross-entropy with soft targets."""
    z = torch.nn.functional.normalize(q, dim=1)
    positive = (z * torch.nn.functional.normalize(k, dim=1)).sum(1, keepdim=True)
    logits = torch.cat([positive, z @ queue.T], dim=1) / TEMPERATURE
    same = labels["subgroups"][:, None] == labels["queue_subgroups"][None, :]
    weight = torch.where(same, labels["same_weight"] + labels["any_weight"], labels["any_weight"])
    weight.masked_fill_(labels["groups"][:, None] != labels["queue_groups"][None, :], 0.0)
    targets = torch.cat([torch.ones_like(positive), weight], dim=1)
    return torch.nn.functional.cross_entropy(logits, targets)


def chunked(q: Tensor, k: Tensor, queue: Tensor, labels: dict[str, Any]) -> Tensor:
    return queue_info_nce(q, k, queue, **labels, temperature=TEMPERATURE, backend="chunked")


IMPLEMENTATIONS = {"materialised": materialised, "chunked": chunked}


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    torch.manual_seed(0)
    q, k = torch.randn(ROWS, WIDTH, requires_grad=True), torch.randn(ROWS, WIDTH)
    queue = torch.nn.functional.normalize(torch.randn(ENTRIES, WIDTH), dim=1)
    age = torch.arange(ENTRIES) // 256
    labels = {
        "groups": torch.arange(ROWS) // 16 % GROUPS,
        "queue_groups": torch.arange(ENTRIES) % GROUPS,
        "subgroups": torch.arange(ROWS) // 64 % SUBGROUPS,
        "queue_subgroups": torch.arange(ENTRIES) // GROUPS % SUBGROUPS,
        "same_weight": 0.5**age,
        "any_weight": 0.2**age,
    }
    return q, k, queue, labels


@pytest.fixture(scope="module")
def forms(request: pytest.FixtureRequest) -> Iterator[Forms]:
    forms = Forms("cpu-queue-info-nce", "chunked", tuple(IMPLEMENTATIONS), SHAPE)
    yield forms
    forms.record(str(request.config.getoption("benchmark_timer")))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_forward_and_backward(name: str, inputs: Any, forms: Forms, benchmark: Any) -> None:
    q = inputs[0]

    def step() -> None:
        q.grad = None
        IMPLEMENTATIONS[name](*inputs).backward()  # type: ignore[no-untyped-call]

    forms.measure(name, benchmark, step, rounds=5, warmup_rounds=1)


def test_same_answer(inputs: Any) -> None:
    q, k, queue, labels = inputs
    few = (q.detach()[::32], k[::32], queue[::16])
    labels = {name: value[:: 32 if name in ("groups", "subgroups") else 16] for name, value in labels.items()}
    labels["queue_groups"] = torch.arange(len(few[2])) % GROUPS
    torch.testing.assert_close(chunked(*few, labels), materialised(*few, labels))
