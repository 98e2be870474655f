"""Similarity sampling: definition, checks and choice of backend."""

import torch
from torch import Tensor

from pscl_kernels.backends import resolve_backend
from pscl_kernels.sample_similar import chunked, reference


def sample_similar(
    templates: Tensor, patches: Tensor, valid: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    """For each image, the patches most similar to the templates, each patch taken at most once.

    Templates choose in their order: template m takes, of the patches that no earlier template of the same image took,
    the one of greatest cosine similarity, and of equals the one of lowest index (PSCL's sampling of unannotated
    images, with strict exclusion in place of the released code's subtraction).

    Arguments
    - templates: (T, D), the same for every image, or (B, T, D).
    - patches: (B, P, D), any strides, of the templates' dtype. float16, bfloat16 and float32 are computed in float32,
      float64 in float64.
    - valid: (B, P) bool, the patches that may be taken; None allows all.
    - backend: "auto", "reference", "chunked" or "triton"; see `pscl_kernels.backends`.

    Returns (B, T) int64 patch indices, -1 where an image has no free valid patch left. A vector's norm counts as at least
    1e-8, so that a zero vector has similarity 0. NaN ranks above every number: a NaN patch is taken first, and a NaN
    template takes the free patch of lowest index. No gradient flows.

    Raises ValueError for wrong shapes, dtypes or devices and for an unknown backend.
    """
    _check(templates, patches, valid)
    templates, patches = templates.detach(), patches.detach()
    backend = resolve_backend(backend, patches)
    if backend == "reference":
        return reference.sample_similar(templates, patches, valid)
    taken: Tensor
    if backend == "triton":
        # Imported on use: this package works without Triton.
        from pscl_kernels.sample_similar import triton

        taken = triton.sample_similar(templates, patches, valid)
    else:
        taken = chunked.sample_similar(templates, patches, valid)
    return taken


def _check(templates: Tensor, patches: Tensor, valid: Tensor | None) -> None:
    if patches.ndim != 3:
        raise ValueError(f"patches must be (B, P, D), got {tuple(patches.shape)}")
    batch, places, width = patches.shape
    if (
        templates.ndim not in (2, 3)
        or templates.shape[-1] != width
        or (templates.shape[:-2] not in ((), (batch,)))
    ):
        raise ValueError(
            f"templates must be (T, {width}) or ({batch}, T, {width}) for patches {tuple(patches.shape)}, "
            f"got {tuple(templates.shape)}"
        )
    if (
        not patches.is_floating_point()
        or templates.dtype != patches.dtype
        or templates.device != patches.device
    ):
        raise ValueError(
            "templates and patches must share one floating dtype and device, "
            f"got {templates.dtype} on {templates.device} and {patches.dtype} on {patches.device}"
        )
    if valid is not None and (
        valid.shape != (batch, places) or valid.dtype != torch.bool or valid.device != patches.device
    ):
        raise ValueError(
            f"valid must be ({batch}, {places}) bool on {patches.device}, as patches are, "
            f"got {tuple(valid.shape)} of {valid.dtype} on {valid.device}"
        )
