"""Both losses on a CPU against installed peers; peers that need a GPU are skipped.

Run by hand: `pytest bench/test_bench_peers.py --benchmark-only`, which rewrites `bench/results/cpu-peers.json`. The
peers are those of `bench/gpu/adapters.py`.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from bench.forms import COMMAND, measure
from bench.gpu.adapters import PEERS, Peer, unit_rows
from bench.gpu.peers import definition
from bench.gpu.run import reason_of
from bench.record import record, version_of
from pscl_kernels import patch_nt_xent, queue_info_nce

ROWS, ENTRIES, WIDTH, TEMPERATURE = 4_096, 4_096, 64, 0.1

OURS = "chunked"

OPERATIONS: dict[Any, Any] = {"loss": patch_nt_xent, "queue": queue_info_nce}

IMPLEMENTATIONS = [
    Peer(OURS, "", task, lambda *given, of=operation: of(*given[:-1], temperature=given[-1], backend=OURS))
    for task, operation in OPERATIONS.items()
] + [peer for peer in PEERS if peer.gradient_on_cpu and not peer.needs_gpu]


@pytest.fixture(scope="module")
def results() -> Iterator[dict[str, dict[str, Any]]]:
    measured: dict[str, dict[str, Any]] = {}
    yield measured
    if not {f"{task}, {OURS}" for task in OPERATIONS} <= set(measured):
        return
    for name, found in measured.items():
        ours = measured[f"{name.partition(',')[0]}, {OURS}"]
        found["time_ratio"] = ours["median_seconds"] / found["median_seconds"]
        found["memory_ratio"] = ours["peak_bytes"] / max(found["peak_bytes"], 1)
    shape = {"rows": ROWS, "entries": ENTRIES, "width": WIDTH, "dtype": "float32", "temperature": TEMPERATURE}
    record("cpu-peers", {"shape": shape, "measured": measured}, command=COMMAND)


@pytest.mark.parametrize("peer", IMPLEMENTATIONS, ids=lambda peer: f"{peer.task}-{peer.name}")
def test_forward_and_backward(peer: Peer, results: dict[str, dict[str, Any]], benchmark: Any) -> None:
    torch.manual_seed(0)
    q = torch.randn(ROWS // 2, WIDTH)
    k = (0.5 * q + torch.randn_like(q)).requires_grad_()
    q.requires_grad_()
    last = None if peer.task == "loss" else unit_rows(*(torch.randn(ENTRIES // 2, WIDTH) for _ in range(2)))
    try:
        value = peer.call(q, k, last, TEMPERATURE).detach().double()
    except ImportError as error:
        pytest.skip(reason_of(error))
    except RuntimeError as error:  # torch's CPU allocator has no error type of its own
        if "can't allocate memory" not in str(error):
            raise
        pytest.skip(reason_of(error))
    inputs = (q.detach().double(), k.detach().double(), last if last is None else last.double())
    true = definition(peer, *inputs, temperature=TEMPERATURE)
    torch.testing.assert_close(value, true, rtol=1e-4, atol=1e-4)  # nothing is timed that is not correct

    def step() -> object:
        wanted = (q, k) if peer.task == "loss" else (q,)
        return torch.autograd.grad(peer.call(q, k, last, TEMPERATURE), wanted)

    if found := measure(benchmark, step, rounds=3, warmup_rounds=1):
        about = {} if peer.name == OURS else {"version": version_of(peer.package), "differs": peer.differs}
        results[f"{peer.task}, {peer.name}"] = {**found, **about}
