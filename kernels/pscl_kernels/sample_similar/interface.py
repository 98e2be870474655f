"""Similarity sampling: definition, checks and choice of backend."""

import torch
from torch import Tensor

from pscl_kernels.backends import resolve_backend
from pscl_kernels.sample_similar import chunked, reference


def sample_similar(
    templates: Tensor, cells: Tensor, valid: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    """For each image, the cells most similar to the templates, each cell taken at most once.

    Templates choose in their order: template m takes, of the cells that no earlier template of the same image took,
    the one of greatest cosine similarity, and of equals the one of lowest index (PSCL's sampling of unannotated
    images, with strict exclusion in place of the released code's subtraction).

    Arguments
    - templates: (T, D), the same for every image, or (B, T, D).
    - cells: (B, P, D), any strides, of the templates' dtype. float16, bfloat16 and float32 are computed in float32,
      float64 in float64.
    - valid: (B, P) bool, the cells that may be taken; None allows all.
    - backend: "auto", "reference", "chunked" or "triton"; see `pscl_kernels.backends`.

    Returns (B, T) int64 cell indices, -1 where an image has no free valid cell left. A vector's norm counts as at least
    1e-8, so that a zero vector has similarity 0. NaN ranks above every number: a NaN cell is taken first, and a NaN
    template takes the free cell of lowest index. No gradient flows.

    Raises ValueError for wrong shapes, dtypes or devices and for an unknown backend.
    """
    _check(templates, cells, valid)
    templates, cells = templates.detach(), cells.detach()
    backend = resolve_backend(backend, cells)
    if backend == "reference":
        return reference.sample_similar(templates, cells, valid)
    taken: Tensor
    if backend == "triton":
        # Imported on use: this package works without Triton.
        from pscl_kernels.sample_similar import triton

        taken = triton.sample_similar(templates, cells, valid)
    else:
        taken = chunked.sample_similar(templates, cells, valid)
    return taken


def _check(templates: Tensor, cells: Tensor, valid: Tensor | None) -> None:
    if cells.ndim != 3:
        raise ValueError(f"cells must be (B, P, D), got {tuple(cells.shape)}")
    batch, places, width = cells.shape
    if (
        templates.ndim not in (2, 3)
        or templates.shape[-1] != width
        or (templates.shape[:-2] not in ((), (batch,)))
    ):
        raise ValueError(
            f"templates must be (T, {width}) or ({batch}, T, {width}) for cells {tuple(cells.shape)}, "
            f"got {tuple(templates.shape)}"
        )
    if not cells.is_floating_point() or templates.dtype != cells.dtype or templates.device != cells.device:
        raise ValueError(
            "templates and cells must share one floating dtype and device, "
            f"got {templates.dtype} on {templates.device} and {cells.dtype} on {cells.device}"
        )
    if valid is not None and (
        valid.shape != (batch, places) or valid.dtype != torch.bool or valid.device != cells.device
    ):
        raise ValueError(
            f"valid must be ({batch}, {places}) bool on {cells.device}, as cells are, "
            f"got {tuple(valid.shape)} of {valid.dtype} on {valid.device}"
        )
