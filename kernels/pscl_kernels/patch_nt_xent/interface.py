"""The group-masked NT-Xent loss: definition, checks and selection of the backend."""

import torch
import torch.distributed as dist
from torch import Tensor

from pscl_kernels.backends import resolve_backend
from pscl_kernels.patch_nt_xent import operation, reference
from pscl_kernels.ranks import name_and_size
from pscl_kernels.transforms import refuse_transforms


def patch_nt_xent(
    q: Tensor,
    k: Tensor,
    groups: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.5,
    process_group: dist.ProcessGroup | None = None,
    backend: str = "auto",
) -> Tensor:
    """NT-Xent over N positive pairs in which rows of one group are not negatives of each other.

    With z the 2N rows of `cat(q, k)` divided by max(norm, 1e-8), s = z z^T and p(i) the same row in the other view,

        loss_i = -s_ip / temperature + log(exp(s_ip / temperature) + sum_j exp(s_ij / temperature))

    where j runs over all rows, of both views, whose group differs from that of i. The result is the mean of loss_i
    over the rows that take part (PSCL, SimCLR variant). With a group per pair it is plain NT-Xent.

    Arguments
    - q, k: (N, D) features of the two views, not normalised, of one floating dtype. float16, bfloat16 and float32
      are computed in float32 (by "triton" from normalised rows of their own dtype), float64 in float64.
    - groups: (N,) integer group of each pair; None makes every pair its own group. A pair of a negative group takes no
      part: it is neither query nor negative, and its features are ignored, whatever their values.
    - temperature: positive number, or a 0-d tensor, which may require a gradient. Usable down to 0.01. The value of a
      tensor is not checked: one that is not positive makes the loss NaN.
    - process_group: None computes on this process only. Otherwise every rank of the group passes its own N pairs (N and
      D equal on all), the negatives come from all ranks, and every rank gets the same mean over all rows. The gradient
      of `q` and `k` is that of this global mean with respect to the local rows, without a reduction over ranks, so
      that the sum of parameter gradients over ranks is exact. DistributedDataParallel averages them instead: multiply
      the loss by `process_group.size()` before `backward()`. The gradient of the temperature is already complete on
      every rank: exclude it from that average and from that factor. The upstream gradient must be the same on every
      rank.
    - backend: "auto", "reference", "chunked" or "triton"; see `pscl_kernels.backends`.

    Returns a 0-d tensor, float64 for float64 features and float32 otherwise; 0 with zero gradients if no row takes
    part. NaN or infinity in a row that takes part makes the loss NaN. Gradients are first-order only.

    Raises ValueError for wrong shapes or dtypes, for a temperature number that is not positive, for an unknown or
    unavailable backend, and if ranks pass different shapes; NotImplementedError in forward-mode differentiation and
    torch.func.grad.
    """
    check_rows(q, k, groups)
    tau = temperature_tensor(temperature)
    refuse_transforms("patch_nt_xent", q, k, tau)
    backend = resolve_backend(backend, q)
    group_name, world_size = name_and_size(process_group)
    groups = pair_groups(q, groups, process_group)
    if backend == "reference":
        loss = reference.patch_nt_xent(q, k, groups, tau, process_group)
        return loss.to(torch.float64 if q.dtype == torch.float64 else torch.float32)
    return operation.patch_nt_xent(q, k, groups, tau, group_name, world_size, backend)


def pair_groups(q: Tensor, groups: Tensor | None, process_group: dist.ProcessGroup | None) -> Tensor:
    """(N,) int64 group of each pair; for None, a number that no other pair of any rank has."""
    if groups is not None:
        return groups.to(device=q.device, dtype=torch.int64)
    first = 0 if process_group is None else process_group.rank() * q.shape[0]
    return torch.arange(first, first + q.shape[0], device=q.device)


def check_rows(q: Tensor, k: Tensor, groups: Tensor | None) -> None:
    """Raise ValueError unless q and k are (N, D) of one floating dtype and groups (N,) integers or None."""
    if q.ndim != 2 or q.shape != k.shape:
        raise ValueError(f"q and k must both be (N, D), got {tuple(q.shape)} and {tuple(k.shape)}")
    if not q.is_floating_point() or q.dtype != k.dtype or q.device != k.device:
        raise ValueError(
            f"q and k must share one floating dtype and device, got {q.dtype} on {q.device} and {k.dtype} on {k.device}"
        )
    if groups is not None and (
        groups.shape != q.shape[:1] or groups.is_floating_point() or groups.dtype == torch.bool
    ):
        raise ValueError(
            f"groups must be ({q.shape[0]},) integers, got {tuple(groups.shape)} of {groups.dtype}"
        )


def temperature_tensor(temperature: float | Tensor) -> Tensor:
    """The temperature as a 0-d tensor, of a number on the CPU; ValueError unless positive number or 0-d floating."""
    if isinstance(temperature, Tensor):
        if temperature.ndim != 0 or not temperature.is_floating_point():
            raise ValueError(
                f"a temperature tensor must be 0-d floating, got {tuple(temperature.shape)} of {temperature.dtype}"
            )
        return temperature
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    # The default device may be an accelerator, to which the number would be copied.
    return torch.tensor(temperature, dtype=torch.float64, device="cpu")
