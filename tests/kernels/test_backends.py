"""Selection of the backend."""

import importlib.util
import types

import pytest
import torch

from pscl_kernels import backends, patch_nt_xent, sample_similar
from pscl_kernels.backends import ENVIRONMENT_VARIABLE, resolve_backend

ROWS = torch.ones(2, 3)


def test_auto_is_chunked_on_a_cpu(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    assert resolve_backend("auto", ROWS) == "chunked"


def test_environment_replaces_auto_alone(monkeypatch):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "reference")
    assert resolve_backend("auto", ROWS) == "reference"
    assert resolve_backend("chunked", ROWS) == "chunked"


def test_unknown_backend_names_the_choices(monkeypatch):
    rows = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"'fast'.*auto, reference or chunked"):
        patch_nt_xent(rows, rows, backend="fast")
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "turbo")
    with pytest.raises(ValueError, match=rf"{ENVIRONMENT_VARIABLE} 'turbo'"):
        sample_similar(rows, rows.unsqueeze(0))


@pytest.fixture(params=[(233_472 - 1024, 512, 128), (101_376, 128, 128), (65_536, 64, 64), (16_384, 0, 0)])
def card(request, monkeypatch):
    """(widest 16-bit rows, widest float32 rows) of a GPU with this much shared memory per block."""
    shared, *widths = request.param
    properties = types.SimpleNamespace(shared_memory_per_block=49_152, shared_memory_per_block_optin=shared)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    return widths


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_triton_takes_what_fits_the_shared_memory_of_the_card(dtype, card):
    widest = card[dtype == torch.float32]

    def rows(width):
        return types.SimpleNamespace(device=torch.device("cuda", 0), dtype=dtype, shape=(2, width))

    if widest:
        assert resolve_backend("auto", rows(widest)) == resolve_backend("triton", rows(widest)) == "triton"
    assert resolve_backend("auto", rows(widest + 1)) == "chunked"
    with pytest.raises(ValueError, match=rf"'triton'.*\b{widest}\b.*reference or chunked"):
        resolve_backend("triton", rows(widest + 1))


def test_widths_without_a_gpu_are_the_greatest(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for dtype, widest in ((torch.bfloat16, 512), (torch.float32, 128), (torch.float64, 0)):
        for device in ("cpu", "cuda"):
            assert backends.triton_maximum_width(dtype, torch.device(device)) == widest
