"""The forms of our own loss: backends, and the two forward passes of the Triton one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ROW, SYMMETRIC, CHUNKED = "triton, row", "triton, symmetric", "chunked"

LOSS_VARIANTS = (ROW, SYMMETRIC, CHUNKED)


def backend_of(variant: str) -> str:
    return variant.partition(",")[0]


def tiling() -> Any:
    """Module that holds the settings of the loss kernels; imported on use, as it needs Triton."""
    from pscl_kernels.patch_nt_xent.triton import tiling as settings

    return settings


def shipped() -> str:
    """The variant that users get on a GPU."""
    return SYMMETRIC if tiling().SYMMETRIC_FORWARD else ROW


@contextmanager
def using(variant: str) -> Iterator[str]:
    """Within it, the loss's Triton backend runs as `variant` says; gives the backend's name."""
    if variant == CHUNKED:
        yield CHUNKED
        return
    settings = tiling()
    before = settings.SYMMETRIC_FORWARD
    settings.SYMMETRIC_FORWARD = variant == SYMMETRIC
    try:
        yield backend_of(variant)
    finally:
        settings.SYMMETRIC_FORWARD = before
