"""The queue loss on a CPU: tiles against all similarities and all labels.

Run by hand: `pytest bench/test_bench_queue_info_nce.py --benchmark-only --benchmark-timer=time.process_time`, which
rewrites `bench/results/cpu-queue-info-nce.json`.
"""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.peak_memory import peak_bytes
from bench.record import record
from pscl_kernels import queue_info_nce

ROWS, ENTRIES, WIDTH, GROUPS, CONDITIONS, TEMPERATURE = 4_096, 16_384, 64, 4, 8, 0.5
COMMAND = " ".join(["pytest", *sys.argv[1:]])


def materialised(q: Tensor, k: Tensor, queue: Tensor, labels: dict[str, Any]) -> Tensor:
    """The loss as good plain torch: one matrix product, one matrix of labels, cross-entropy with soft targets."""
    z = torch.nn.functional.normalize(q, dim=1)
    positive = (z * torch.nn.functional.normalize(k, dim=1)).sum(1, keepdim=True)
    logits = torch.cat([positive, z @ queue.T], dim=1) / TEMPERATURE
    same = labels["conditions"][:, None] == labels["queue_conditions"][None, :]
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
        "conditions": torch.arange(ROWS) // 64 % CONDITIONS,
        "queue_conditions": torch.arange(ENTRIES) // GROUPS % CONDITIONS,
        "same_weight": 0.5**age,
        "any_weight": 0.2**age,
    }
    return q, k, queue, labels


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest) -> Any:
    measured: dict[str, dict[str, float]] = {}
    yield measured
    if set(measured) != set(IMPLEMENTATIONS):
        return
    ours, theirs = measured["chunked"], measured["materialised"]
    shape = {
        "rows": ROWS,
        "entries": ENTRIES,
        "width": WIDTH,
        "groups": GROUPS,
        "conditions": CONDITIONS,
        "dtype": "float32",
        "temperature": TEMPERATURE,
    }
    timer = str(request.config.getoption("benchmark_timer"))
    ratios = {
        "time_ratio": ours["median_seconds"] / theirs["median_seconds"],
        "memory_ratio": ours["peak_bytes"] / theirs["peak_bytes"],
    }
    record(
        "cpu-queue-info-nce",
        {"shape": shape, "timer": timer, "measured": measured, **ratios},
        command=COMMAND,
    )


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_forward_and_backward(
    name: str, inputs: Any, results: dict[str, dict[str, float]], benchmark: Any
) -> None:
    q = inputs[0]

    def step() -> None:
        q.grad = None
        IMPLEMENTATIONS[name](*inputs).backward()

    benchmark.pedantic(step, rounds=5, warmup_rounds=1)
    if benchmark.enabled:
        quantiles = _quantiles(benchmark.stats.stats.data)
        results[name] = {**quantiles, "peak_bytes": peak_bytes(step)}
        benchmark.extra_info.update(results[name])


def test_same_answer(inputs: Any) -> None:
    q, k, queue, labels = inputs
    few = (q.detach()[::32], k[::32], queue[::16])
    labels = {
        name: value[:: 32 if name in ("groups", "conditions") else 16] for name, value in labels.items()
    }
    labels["queue_groups"] = torch.arange(len(few[2])) % GROUPS
    torch.testing.assert_close(chunked(*few, labels), materialised(*few, labels))


def _quantiles(seconds: list[float]) -> dict[str, float]:
    values = torch.quantile(torch.tensor(seconds), torch.tensor([0.2, 0.5, 0.8])).tolist()
    return dict(zip(("q20_seconds", "median_seconds", "q80_seconds"), values, strict=True))
