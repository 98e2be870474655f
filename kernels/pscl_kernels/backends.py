"""Selection of the backend of an operation."""

import contextlib
import importlib.util
import math
import os
from collections.abc import Iterator

import torch
from torch import Tensor

BACKENDS = ("reference", "chunked", "triton")
"""All backends, from the most readable to the fastest."""

ENVIRONMENT_VARIABLE = "PSCL_KERNELS_BACKEND"
"""Environment variable that overrides `backend="auto"`."""

_OF_16_BITS = {64: 42_272, 128: 99_840, 512: 164_864}

TRITON_SHARED_BYTES = {
    torch.float32: {64: 57_344, 128: 66_560},
    torch.float16: _OF_16_BITS,
    torch.bfloat16: _OF_16_BITS,
}
"""Shared memory per block that the Triton kernels need, by dtype and maximum width of the rows, on any chip.

Wider rows are not possible, because a block of rows is kept in registers, in three parts for float32. `tests/kernels`
compares these numbers with those of the compiler.
"""


def available_backends(features: Tensor) -> tuple[str, ...]:
    """Backends that can run on features (..., D) like these, a subset of `BACKENDS` in its order.

    "triton" needs the package, a dtype and width within `triton_maximum_width`, and a CUDA device or Triton's
    interpreter (environment variable TRITON_INTERPRET=1).
    """
    runs_triton = (
        (features.device.type == "cuda" or _interpreted())
        and features.shape[-1] <= triton_maximum_width(features.dtype, features.device)
        and importlib.util.find_spec("triton") is not None
    )
    return BACKENDS if runs_triton else BACKENDS[:-1]


def triton_maximum_width(dtype: torch.dtype, device: torch.device) -> int:
    """Maximum width of rows of `dtype` for the Triton kernels, given the shared memory per block of `device`."""
    most = _shared_bytes(device)
    widths = [width for width, needed in TRITON_SHARED_BYTES.get(dtype, {}).items() if needed <= most]
    return max(widths, default=0)


def resolve_backend(backend: str, features: Tensor) -> str:
    """The backend to run on features (..., D) like these.

    `"auto"` is the value of the environment variable `PSCL_KERNELS_BACKEND` if it is set, otherwise "triton" on a CUDA
    device where it is available and "chunked" elsewhere. Raises ValueError for an unknown or unavailable backend.
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
        if backend == "triton":
            state += f" (its maximum width there is {triton_maximum_width(features.dtype, features.device)})"
        raise ValueError(f"{source} {backend!r} {state}: choose auto, {' or '.join(choices)} for {rows}")
    return backend


@contextlib.contextmanager
def computing_on(tensor: Tensor) -> Iterator[None]:
    """Context without autocast in which kernels are launched on the device of `tensor`, not on the current device."""
    guard = torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]
    with torch.autocast(tensor.device.type, enabled=False), guard:
        yield


def _shared_bytes(device: torch.device) -> float:
    """Maximum shared memory per block of a device; infinite if kernels are interpreted or only traced."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return math.inf
    properties = torch.cuda.get_device_properties(device)
    # Some builds of torch do not have this property.
    most: int = getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block)
    return most


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"
