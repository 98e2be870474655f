"""Where the Triton kernels are tested: in Triton's interpreter on the CPU, or on a CUDA device."""

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

EXTRA = 0.0 if INTERPRETED else 1e-5
"""Additional tolerance: a GPU computes float32 products as three TF32 products, and exponentials by approximation."""

interpreter_only = pytest.mark.skipif(not INTERPRETED, reason="runs in the interpreter only")


@pytest.fixture(autouse=True)
def poison():
    """Uninitialised memory is NaN: a kernel that reads it, or does not write all results, fails."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3, device=DEVICE).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
