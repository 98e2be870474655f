"""No operation makes the host wait for a GPU, tested without one.

The operations run on tensors of the meta device, which they treat as an accelerator and which have no values: reading
one (`item`, `tolist`, `if`) and any result whose shape depends on values (`nonzero`, boolean indexing) raises. Copies
between devices, which would wait, are refused as well. Kernels and collectives are left out; where a kernel would be
launched, the device must be that of the operation's tensors. `bench/gpu/correctness.py` runs the same calls on a GPU.
"""

import contextlib

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pscl_kernels import ranks
from pscl_kernels.patch_nt_xent import operation, statistics
from pscl_kernels.queue_info_nce import operation as queue_operation
from pscl_kernels.sample_similar import chunked

from .meta import needs_triton, replace_kernels

N, D = 300, 24

BACKENDS = ["chunked", pytest.param("triton", marks=needs_triton)]


class NoCopiesBetweenDevices(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in (*args, result) if isinstance(x, torch.Tensor)]
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            assert len({x.device.type for x in tensors}) == 1, f"{func} between devices"
        return result


class NoDataFromTheHost(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.tensor, torch.as_tensor) and (kwargs or {}).get("device") is not None:
            assert torch.device(kwargs["device"]).type == "cpu", "data is copied to the device"
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def _no_kernels(monkeypatch):
    replace_kernels(monkeypatch)


@pytest.fixture(params=[1, 2])
def world(request, monkeypatch):
    """Name and size of a process group whose collectives do nothing."""
    if request.param == 1:
        return "", 1

    class Done:
        def wait(self):
            pass

    monkeypatch.setattr(ranks, "_resolve", lambda name: None)
    monkeypatch.setattr(ranks, "_all_gather", lambda *args, **kwargs: Done())
    monkeypatch.setattr(ranks, "rank_in", lambda name: 1)
    monkeypatch.setattr(operation, "rank_in", lambda name: 1)
    monkeypatch.setattr(statistics, "rank_in", lambda name: 1)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *args, **kwargs: None)
    return "group", request.param


@pytest.fixture
def _strict(monkeypatch):
    # The meta device knows no autocast.
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    with NoCopiesBetweenDevices(), NoDataFromTheHost():
        yield


@pytest.mark.usefixtures("_strict")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("on_device", [False, True])
def test_loss_and_gradient(backend, on_device, world):
    name, size = world
    q, k = (torch.empty(N, D, dtype=torch.bfloat16, device="meta") for _ in range(2))
    groups = torch.empty(N, dtype=torch.int64, device="meta")
    tau = torch.empty((), device="meta") if on_device else torch.tensor(0.2, dtype=torch.float64)
    loss, *saved = operation._forward._init_fn(q, k, groups, tau, name, size, backend)
    assert loss.device.type == "meta"
    grad = torch.empty((), device="meta")
    grad_q, _, dtau = operation._backward._init_fn(grad, q, k, tau, saved, on_device, name, backend)
    assert grad_q.shape == q.shape
    assert dtau.shape == ()


@pytest.mark.usefixtures("_strict")
def test_statistics(world, monkeypatch):
    monkeypatch.setattr(statistics, "name_and_size", lambda group: world)
    q, k = (torch.empty(N, D, dtype=torch.bfloat16, device="meta") for _ in range(2))
    positive, hardest = statistics.patch_similarity_stats(
        q, k, torch.empty(N, dtype=torch.int64, device="meta")
    )
    assert positive.device.type == hardest.device.type == "meta"


@pytest.mark.usefixtures("_strict")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("labelled", [False, True])
def test_queue_loss_and_gradient(backend, on_device, labelled, world):
    entries = 500
    q, k = (torch.empty(N, D, dtype=torch.bfloat16, device="meta") for _ in range(2))
    queue = torch.empty(entries, D, device="meta")
    ids = [torch.empty(n, dtype=torch.int64, device="meta") for n in (N, entries, N, entries)]
    weights = [torch.empty(n, device="meta") for n in (entries, entries, N)]
    labels = [*ids, *weights] if labelled else [None] * 7
    tau = torch.empty((), device="meta") if on_device else torch.tensor(0.2, dtype=torch.float64)
    loss, *saved = queue_operation._forward._init_fn(q, k, queue, *labels, True, tau, world[0], backend)
    assert loss.device.type == "meta"
    grad = torch.empty((), device="meta")
    coefficient, mass, lse, *columns = saved
    grad_q, grad_k, dtau = queue_operation._backward._init_fn(
        grad, q, k, labels[0], tau, coefficient, mass, lse, columns, True, on_device, backend
    )
    assert grad_q.shape == grad_k.shape == q.shape
    assert dtau.shape == ()


@pytest.mark.usefixtures("_strict")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("masked", [False, True])
def test_sampling(backend, masked):
    if backend == "triton":
        from pscl_kernels.sample_similar import triton as module
    else:
        module = chunked
    templates, patches = torch.empty(9, D, device="meta"), torch.empty(3, N, D, device="meta")
    valid = torch.empty(3, N, dtype=torch.bool, device="meta") if masked else None
    taken = module.sample_similar._init_fn(templates, patches, valid)
    assert taken.shape == (3, 9)


@pytest.mark.usefixtures("_strict")
def test_that_waiting_is_noticed():
    x = torch.empty(4, device="meta")
    for wait in (lambda: x[0].item(), lambda: x[x > 0], lambda: bool(x.any()), lambda: x.nonzero(), x.cpu):
        with pytest.raises((RuntimeError, AssertionError, NotImplementedError)):
            wait()
    with pytest.raises(AssertionError):
        torch.tensor([1, 2], device="meta")
