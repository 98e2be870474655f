"""Which implementation of an operation runs."""

import contextlib
import importlib.util
import os
from collections.abc import Iterator

import torch
from torch import Tensor

BACKENDS = ("reference", "chunked", "triton")
"""Every backend, from the clearest to the fastest."""

ENVIRONMENT_VARIABLE = "PSCL_KERNELS_BACKEND"
"""Environment variable that replaces the choice of `backend="auto"`."""

TRITON_MAXIMUM_WIDTH = {torch.float32: 128, torch.float16: 512, torch.bfloat16: 512}
"""Widest rows of the Triton kernels, which hold a block of rows in registers, float32 ones in three parts."""


def available_backends(features: Tensor) -> tuple[str, ...]:
    """Backends that can run on features (..., D) like these, a subset of `BACKENDS` in its order.

    "triton" needs the package, a dtype and width within `TRITON_MAXIMUM_WIDTH`, and a CUDA device or Triton's
    interpreter (environment variable TRITON_INTERPRET=1).
    """
    runs_triton = (
        (features.device.type == "cuda" or _interpreted())
        and features.shape[-1] <= TRITON_MAXIMUM_WIDTH.get(features.dtype, 0)
        and importlib.util.find_spec("triton") is not None
    )
    return BACKENDS if runs_triton else BACKENDS[:-1]


def resolve_backend(backend: str, features: Tensor) -> str:
    """The backend to run on features (..., D) like these.

    `"auto"` is the value of the environment variable `PSCL_KERNELS_BACKEND` where that is set, else "triton" on a CUDA
    device where it is available and "chunked" elsewhere. Raises ValueError, naming the choices, for an unknown or
    unavailable backend.
    """
    choices = available_backends(features)
    source = "backend"
    if backend == "auto":
        backend = os.environ.get(ENVIRONMENT_VARIABLE, "auto")
        source = ENVIRONMENT_VARIABLE
    if backend == "auto":
        return "triton" if "triton" in choices and features.device.type == "cuda" else "chunked"
    if backend not in choices:
        state = "is not available" if backend in BACKENDS else "does not exist"
        rows = f"{features.dtype} rows of {features.shape[-1]} on {features.device.type}"
        raise ValueError(f"{source} {backend!r} {state}: choose auto, {' or '.join(choices)} for {rows}")
    return backend


@contextlib.contextmanager
def computing_on(tensor: Tensor) -> Iterator[None]:
    """Within it autocast is off, and kernels are launched on the device that holds `tensor`, not on the current one."""
    with torch.autocast(tensor.device.type, enabled=False), torch.cuda.device_of(tensor):
        yield


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"
