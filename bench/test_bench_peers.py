"""Both losses on a CPU against what others offer for the same tasks, where it is installed.

Run by hand: `pytest bench/test_bench_peers.py --benchmark-only`, which rewrites `bench/results/cpu-peers.json`. The
peers are those of `bench/gpu/peers`; one that is not installed is skipped, and so is one that needs a GPU.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.forms import COMMAND, measure
from bench.gpu import oracles
from bench.gpu.measure import reason
from bench.gpu.peers import PEERS
from bench.gpu.peers.base import Peer, unit_rows, version
from bench.gpu.setting import Setting
from bench.record import record
from pscl_kernels import patch_nt_xent, queue_info_nce

ROWS, ENTRIES, WIDTH, TEMPERATURE = 4_096, 4_096, 64, 0.1
SETTING = Setting(torch.device("cpu"), 600.0)

OURS = "chunked"

NAMES = [(task, OURS) for task in ("loss", "queue")] + [
    (peer.task, peer.name)
    for peer in PEERS
    if peer.task != "top1" and not peer.needs_gpu and peer.gradients_on_cpu
]

Step = Callable[[], Tensor]


@pytest.fixture(scope="module")
def results() -> Iterator[dict[str, dict[str, Any]]]:
    measured: dict[str, dict[str, Any]] = {}
    yield measured
    if not {f"{task}, {OURS}" for task in ("loss", "queue")} <= set(measured):
        return
    for name, found in measured.items():
        ours = measured[f"{name.partition(',')[0]}, {OURS}"]
        found["time_ratio"] = ours["median_seconds"] / found["median_seconds"]
        found["memory_ratio"] = ours["peak_bytes"] / max(found["peak_bytes"], 1)
    shape = {"rows": ROWS, "entries": ENTRIES, "width": WIDTH, "dtype": "float32", "temperature": TEMPERATURE}
    record("cpu-peers", {"shape": shape, "measured": measured}, command=COMMAND)


@pytest.mark.parametrize(("task", "name"), NAMES)
def test_forward_and_backward(
    task: str, name: str, results: dict[str, dict[str, Any]], benchmark: Any
) -> None:
    torch.manual_seed(0)
    q = torch.randn(ROWS // 2, WIDTH)
    inputs = q.requires_grad_(), (0.5 * q.detach() + torch.randn_like(q)).requires_grad_()
    entries = unit_rows(*(torch.randn(ENTRIES // 2, WIDTH) for _ in range(2)))
    peer = next((peer for peer in PEERS if (peer.task, peer.name) == (task, name)), None)
    loss = _loss(peer, task, inputs, entries)
    try:
        _check(peer, task, loss(), inputs, entries)
    except RuntimeError as error:  # torch's CPU allocator has no error of its own
        if "can't allocate memory" not in str(error):
            raise
        pytest.skip(reason(error))

    def step() -> object:
        return torch.autograd.grad(loss(), inputs if task == "loss" else inputs[0])

    if found := measure(benchmark, step, rounds=3, warmup_rounds=1):
        about = {"version": version(peer.package), "differs": peer.differs} if peer else {}
        results[f"{task}, {name}"] = {**found, **about}


def _loss(peer: Peer | None, task: str, inputs: tuple[Tensor, Tensor], entries: Tensor) -> Step:
    if peer is None and task == "loss":
        return lambda: patch_nt_xent(*inputs, temperature=TEMPERATURE, backend=OURS)
    if peer is None:
        return lambda: queue_info_nce(*inputs, entries, temperature=TEMPERATURE, backend=OURS)
    try:
        call = peer.build(SETTING, TEMPERATURE)
    except Exception as error:  # an import of theirs may fail in any way
        pytest.skip(reason(error))
    last = None if task == "loss" else entries
    return lambda: call(*inputs, last)


def _check(
    peer: Peer | None, task: str, value: Tensor, inputs: tuple[Tensor, Tensor], entries: Tensor
) -> None:
    """No figure of what is not correct."""
    q, k = (x.detach().double() for x in inputs)
    if task == "loss":
        true = oracles.loss(q, k, None, TEMPERATURE, self_pair=peer is not None and peer.self_pair)
    else:
        true = oracles.queue(q, k, entries.double(), TEMPERATURE)
    torch.testing.assert_close(value.detach().double(), true, rtol=1e-4, atol=1e-4)
