"""Similarity sampling: definition, checks and selection of the backend."""

import torch
from torch import Tensor

from pscl_kernels.backends import resolve_backend
from pscl_kernels.sample_similar import chunked, reference


def sample_similar(
    templates: Tensor, patches: Tensor, valid: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    """For each image, the patches most similar to the templates, each patch taken at most once.

    Templates choose in order: template m takes, among the patches that no earlier template of the same image took, the
    one with the greatest cosine similarity, and among equals the one with the lowest index. This is PSCL's sampling of
    unannotated images, with strict exclusion instead of the released code's subtraction.

    Arguments
    - templates: (T, D), the same for every image, or (B, T, D).
    - patches: (B, P, D), any strides, of the templates' dtype. float16, bfloat16 and float32 are computed in float32,
      float64 in float64.
    - valid: (B, P) bool, the patches that may be taken; None allows all.
    - backend: "auto", "reference", "chunked" or "triton"; see `pscl_kernels.backends`.

    Returns (B, T) int64 patch indices without gradient, -1 if an image has no free valid patch left. Vectors are
    divided by max(norm, 1e-8), so that a zero vector has similarity 0. NaN ranks above every number: a NaN patch is
    taken first, and a NaN template takes the free patch of lowest index.

    Raises ValueError for wrong shapes, dtypes or devices and for an unknown or unavailable backend.
    """
    _check(templates, patches, valid)
    templates, patches = templates.detach(), patches.detach()
    backend = resolve_backend(backend, patches)
    if backend == "reference":
        return reference.sample_similar(templates, patches, valid)
    taken: Tensor
    if backend == "triton":
        # Imported here, because the package also works without Triton.
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
            f"valid must be ({batch}, {places}) bool on the device of patches, {patches.device}, "
            f"got {tuple(valid.shape)} of {valid.dtype} on {valid.device}"
        )
