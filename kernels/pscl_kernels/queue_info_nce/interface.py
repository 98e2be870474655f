"""InfoNCE against a queue: definition, checks and selection of the backend."""

import torch
import torch.distributed as dist
from torch import Tensor

from pscl_kernels.backends import resolve_backend
from pscl_kernels.patch_nt_xent.interface import check_rows, temperature_tensor
from pscl_kernels.queue_info_nce import operation, reference
from pscl_kernels.queue_info_nce.labels import Labels
from pscl_kernels.ranks import name_and_size
from pscl_kernels.transforms import refuse_transforms


def queue_info_nce(
    q: Tensor,
    k: Tensor,
    queue: Tensor,
    *,
    groups: Tensor | None = None,
    queue_groups: Tensor | None = None,
    subgroups: Tensor | None = None,
    queue_subgroups: Tensor | None = None,
    same_weight: Tensor | None = None,
    any_weight: Tensor | None = None,
    row_weights: Tensor | None = None,
    normalise_targets: bool = False,
    temperature: float | Tensor = 0.2,
    process_group: dist.ProcessGroup | None = None,
    backend: str = "auto",
) -> Tensor:
    """InfoNCE of N positive pairs against Q queued keys, some of which may be partly positive.

    With z and z+ the rows of q and k divided by max(norm, 1e-8), s_i+ = z_i . z+_i and s_ij = z_i . queue_j,

        y_ij = [group_i = group_j] ([subgroup_i = subgroup_j] same_weight_j + any_weight_j),    Y_i = 1 + sum_j y_ij
        loss_i = Y_i log(exp(s_i+ / temperature) + sum_j exp(s_ij / temperature))
                 - (s_i+ + sum_j y_ij s_ij) / temperature

    where j runs over the entries that are not empty: cross-entropy with the targets (1, y_i1, .., y_iQ), which are not
    normalised. The result is sum_i row_weight_i loss_i over the rows that take part, divided by their number.

    Without weights this is plain InfoNCE (MoCo; over dense features, DenseCL). With class prototypes of images as
    entries, classes as groups, production batches as subgroups and weights that decrease with an entry's age it is the
    loss of PSCL-MoCo; without groups, its image-level loss.

    Arguments
    - q, k: (N, D) queries and their positive keys, not normalised, of one floating dtype. float16, bfloat16 and
      float32 are computed in float32 (by "triton" from rows of their own dtype), float64 in float64.
    - queue: (Q, D) keys, used as they are, without gradient. Norms of at most 1 are usual. Longer keys work as long as
      float32 holds norm / temperature; "triton" stores keys in the dtype of q, so that with float16 rows a number beyond
      65,504 becomes infinite and the loss NaN.
    - groups (N,), queue_groups (Q,): integer group of each row and entry, given together or not at all. A row of a
      negative group takes no part, and an entry of a negative group is an empty slot; their features and weights are
      ignored, whatever their values. None: all rows and entries are of one group.
    - subgroups (N,), queue_subgroups (Q,): integer subgroup of each row and entry, given together; only same_weight
      needs them. A negative one is unknown and equals no other.
    - same_weight (Q,): target weight >= 0 of an entry for rows of its group and subgroup; needs subgroups.
    - any_weight (Q,): target weight >= 0 of an entry for all rows of its group.
    - row_weights: (N,) factor >= 0 on each row's loss; None is 1.
    - normalise_targets: divide each row's targets by their sum Y_i.
    - temperature: positive number, or a 0-d tensor, which may require a gradient. Usable down to 0.01. The value of a
      tensor is not checked: one that is not positive makes the loss NaN.
    - process_group: None computes on this process only. Otherwise every rank passes its own rows, of any number, and
      the same queue, and the number of rows in the denominator is that of all ranks. Each rank gets its share: loss and
      gradients, including that of the temperature, **add up** over ranks to those of one process with all rows.
      DistributedDataParallel averages gradients instead: multiply the loss by `process_group.size()` before
      `backward()`.
    - backend: "auto", "reference", "chunked" or "triton"; see `pscl_kernels.backends`.

    Returns a 0-d tensor, float64 for float64 features and float32 otherwise; 0 with zero gradients if no row takes
    part. NaN or infinity in a row or entry that takes part makes the loss NaN or infinite. Gradients are
    first-order only and reach q, k and the temperature.

    Raises ValueError for wrong shapes or dtypes, if only one of two arguments that belong together is given, for a
    temperature number that is not positive, and for an unknown or unavailable backend; NotImplementedError in
    forward-mode differentiation and torch.func.grad.
    """
    check_rows(q, k, None)
    _check_queue(q, queue)
    entries = queue.shape[0]
    _check_pair("groups", groups, queue_groups, q.shape[0], entries)
    _check_pair("subgroups", subgroups, queue_subgroups, q.shape[0], entries)
    for name, weight, length in (
        ("same_weight", same_weight, entries),
        ("any_weight", any_weight, entries),
        ("row_weights", row_weights, q.shape[0]),
    ):
        if weight is not None and weight.shape != (length,):
            raise ValueError(f"{name} must be ({length},), got {tuple(weight.shape)}")
    if same_weight is not None and subgroups is None:
        raise ValueError("same_weight needs subgroups and queue_subgroups")
    tau = temperature_tensor(temperature)
    refuse_transforms("queue_info_nce", q, k, tau)
    backend = resolve_backend(backend, q)
    group_name, _ = name_and_size(process_group)

    def integers(ids: Tensor | None) -> Tensor | None:
        return None if ids is None else ids.to(device=q.device, dtype=torch.int64).contiguous()

    def numbers(weight: Tensor | None) -> Tensor | None:
        dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
        return None if weight is None else weight.detach().to(device=q.device, dtype=dtype)

    labels = Labels(
        integers(groups),
        integers(queue_groups),
        integers(subgroups if same_weight is not None else None),
        integers(queue_subgroups if same_weight is not None else None),
        numbers(same_weight),
        numbers(any_weight),
    )
    weights = numbers(row_weights)
    if backend == "reference":
        loss = reference.queue_info_nce(
            q, k, queue.detach(), labels, weights, normalise_targets, tau, group_name
        )
        return loss.to(torch.float64 if q.dtype == torch.float64 else torch.float32)
    return operation.queue_info_nce(
        q, k, queue.detach(), labels, weights, normalise_targets, tau, group_name, backend
    )


def _check_queue(q: Tensor, queue: Tensor) -> None:
    if queue.ndim != 2 or queue.shape[1] != q.shape[1]:
        raise ValueError(
            f"queue must be (Q, {q.shape[1]}) for rows {tuple(q.shape)}, got {tuple(queue.shape)}"
        )
    if not queue.is_floating_point() or queue.device != q.device:
        raise ValueError(
            f"queue must be floating on the device of q, got {queue.dtype} on {queue.device} and q on {q.device}"
        )


def _check_pair(name: str, of_rows: Tensor | None, of_queue: Tensor | None, rows: int, entries: int) -> None:
    if (of_rows is None) != (of_queue is None):
        raise ValueError(f"{name} and queue_{name} must be given together")
    for label, ids, length in ((name, of_rows, rows), (f"queue_{name}", of_queue, entries)):
        if ids is not None and (ids.shape != (length,) or ids.is_floating_point() or ids.dtype == torch.bool):
            raise ValueError(f"{label} must be ({length},) integers, got {tuple(ids.shape)} of {ids.dtype}")
