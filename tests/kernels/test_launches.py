"""How many launches one call of a loss takes: small batches are bound by the host that launches.

Counted on the meta device: operators of torch that compute or move something, and kernels. An operator such as a sort may
launch several kernels on a GPU.
"""

import contextlib
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pscl_kernels.patch_nt_xent import operation
from pscl_kernels.queue_info_nce import operation as queue_operation

from .meta import needs_triton, replace_kernels

pytestmark = needs_triton
D = 24
FREE = {
    *(
        "alias",
        "as_strided",
        "detach",
        "empty",
        "empty_like",
        "expand",
        "new_empty",
        "permute",
        "select",
        "slice",
    ),
    *("split", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view", "_unsafe_view"),
}
"""Operators without a launch: memory and views."""


class Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, tuple | list) else [result]
        on_device = [x for x in (*args, *results) if isinstance(x, torch.Tensor) and x.device.type == "meta"]
        name = func._schema.name.partition("::")[2]
        if on_device and name not in FREE:
            self.counts[name] += 1
        return result


@pytest.fixture
def launched(monkeypatch):
    """Function that runs another and returns (its result, operators and launches together)."""
    kernels = replace_kernels(monkeypatch)
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())

    def run(function):
        kernels.clear()
        with Operators() as operators:
            result = function()
        return result, operators.counts.total() + kernels.total()

    return run


@pytest.mark.parametrize(
    ("n", "on_device", "forward", "backward"),
    [(300, False, 6, 3), (4096, False, 6, 3), (70_000, False, 7, 3), (300, True, 7, 5)],
)
def test_loss(launched, n, on_device, forward, backward):
    """Before these steps had kernels of their own: 47 and 26, for a temperature on the device 53 and 40."""
    q, k = (torch.empty(n, D, dtype=torch.bfloat16, device="meta") for _ in range(2))
    groups = torch.empty(n, dtype=torch.int64, device="meta")
    tau = torch.empty((), device="meta") if on_device else torch.tensor(0.2, dtype=torch.float64)
    (_, *saved), number = launched(lambda: operation._forward._init_fn(q, k, groups, tau, "", 1, "triton"))
    assert number <= forward
    grad = torch.empty((), device="meta")
    _, number = launched(
        lambda: operation._backward._init_fn(grad, q, k, tau, saved, on_device, "", "triton")
    )
    assert number <= backward


@pytest.mark.parametrize(("labelled", "forward", "backward"), [(False, 13, 8), (True, 18, 8)])
def test_queue_loss(launched, labelled, forward, backward):
    """The forward pass took 50 and 118 before losses, keys and the search for labels had kernels of their own."""
    n, entries = 300, 500
    q, k = (torch.empty(n, D, dtype=torch.bfloat16, device="meta") for _ in range(2))
    queue = torch.empty(entries, D, device="meta")
    ids = [torch.empty(size, dtype=torch.int64, device="meta") for size in (n, entries, n, entries)]
    weights = [torch.empty(size, device="meta") for size in (entries, entries, n)]
    labels = [*ids, *weights] if labelled else [None] * 7
    tau = torch.tensor(0.2, dtype=torch.float64)
    (_, coefficient, mass, lse, *columns), number = launched(
        lambda: queue_operation._forward._init_fn(q, k, queue, *labels, True, tau, "", "triton")
    )
    assert number <= forward
    grad = torch.empty((), device="meta")
    _, number = launched(
        lambda: queue_operation._backward._init_fn(
            grad, q, k, labels[0], tau, coefficient, mass, lse, columns, True, False, "triton"
        )
    )
    assert number <= backward
