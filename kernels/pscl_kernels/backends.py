"""Which implementation of an operation runs."""

import os

import torch

BACKENDS = ("reference", "chunked")
"""Every backend, from the clearest to the fastest."""

ENVIRONMENT_VARIABLE = "PSCL_KERNELS_BACKEND"
"""Environment variable that replaces the choice of `backend="auto"`."""


def available_backends(device: torch.device) -> tuple[str, ...]:
    """Backends that can run on `device`, a subset of `BACKENDS` in its order."""
    return BACKENDS


def resolve_backend(backend: str, device: torch.device) -> str:
    """The backend to run for tensors on `device`.

    `"auto"` is the value of the environment variable `PSCL_KERNELS_BACKEND` where that is set, else the fastest
    available one. Raises ValueError, naming the choices, for an unknown or unavailable backend.
    """
    choices = available_backends(device)
    source = "backend"
    if backend == "auto":
        backend = os.environ.get(ENVIRONMENT_VARIABLE, "auto")
        source = ENVIRONMENT_VARIABLE
    if backend == "auto":
        return choices[-1]
    if backend not in choices:
        state = "is not available here" if backend in BACKENDS else "does not exist"
        raise ValueError(
            f"{source} {backend!r} {state}: choose auto, {' or '.join(choices)} on {device.type}"
        )
    return backend
