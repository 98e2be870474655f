"""InfoNCE against a queue as one differentiable operator for all backends.

A backend is a module with the functions of `Backend`. This module has the parts that all backends share: which rows take
part, the registration with torch (so that torch.compile sees one opaque operator) and the gradient of the temperature.

Row i contributes c_i G_i / temperature to the gradient of z_i and -c_i <z_i, G_i> / temperature^2 to that of the
temperature, with p_ij the softmax over positive and entries, t_i = sum_j y_ij queue_j and

    G_i = Y_i sum_j p_ij queue_j + (Y_i p_i+ - 1) z+_i - t_i,    c_i = row weight_i (/ Y_i) / number of rows.
"""

import importlib
import math
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from pscl_kernels.backends import computing_on
from pscl_kernels.patch_nt_xent.operation import LOG2_E
from pscl_kernels.queue_info_nce.labels import Labels
from pscl_kernels.ranks import total


class Columns(NamedTuple):
    """The sorted queue, and the sums of weighted keys that make up the targets."""

    keys: Tensor  # (Q, width) entries sorted by label, empty ones last and zero, in the backend's dtype
    filled: Tensor  # 0-d int64: number of entries that are not empty
    bound: Tensor  # 0-d: greatest norm of an entry; times the length of a row it bounds the exponents
    sums: Tensor  # (T, Q, width) weighted sum of the keys of the run that begins at each place
    place: Tensor  # (T, N) int64: places of each row's T sums, -1 for zero


class Rows(NamedTuple):
    """Results of the forward pass for each row."""

    lse: Tensor  # (S, N) base-2 logarithms of S shares of the sum of exponentials over positive and entries
    positive: Tensor  # (N,) base-2 exponent of the positive
    target: Tensor  # (N,) sum_j y_ij times the base-2 exponent of entry j
    mass: Tensor  # (N,) Y_i


class Backend(Protocol):
    """Functions of a module that computes the loss."""

    def layout(self, q: Tensor) -> tuple[int, torch.dtype]:
        """Width and dtype of the columns for features like `q`."""

    def columns(self, q: Tensor, queue: Tensor, labels: Labels) -> tuple[Columns, Tensor]:
        """The columns of a queue (Q, D), and (T, Q) the sum of the weights of the run that begins at each place."""

    def forward(
        self, q: Tensor, k: Tensor, present: Tensor, temperature: Tensor, columns: Columns, masses: Tensor
    ) -> Rows:
        """`Rows` for q, k (N, D); finite numbers for rows that are not present, (N,) bool."""

    def losses(
        self,
        rows: Rows,
        bound: Tensor,
        present: Tensor,
        row_weights: Tensor | None,
        count: Tensor,
        normalise: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sum of c_i times the loss of each row, 0-d, c_i (N,), and the logarithm of all shares of each row, (N,).

        present (N,) is bool. c_i is the row's weight, or 1, divided by the 0-d `count` or 1, and with
        `normalise` by Y_i; 0 for a row that is not present. All are NaN or infinite if `bound` is.
        """

    def backward(
        self,
        q: Tensor,
        k: Tensor,
        present: Tensor,
        temperature: Tensor,
        columns: Columns,
        lse: Tensor,
        mass: Tensor,
        coefficient: Tensor,
        with_k: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q and k, (N, D), and coefficient_i <z_i, G_i> summed over rows, 0-d.

        coefficient (N,) is c_i, mass (N,) is Y_i. Without `with_k`, the second result is (0,).
        """


def queue_info_nce(
    q: Tensor,
    k: Tensor,
    queue: Tensor,
    labels: Labels,
    row_weights: Tensor | None,
    normalise_targets: bool,
    temperature: Tensor,
    group_name: str,
    backend: str,
) -> Tensor:
    """Loss of `interface.queue_info_nce`; labels and weights already of the right dtype and device."""
    loss: Tensor = _forward(
        q, k, queue, *labels, row_weights, normalise_targets, temperature, group_name, backend
    )[0]
    return loss


def scale_of(temperature: Tensor) -> Tensor:
    """Factor from products of unit rows and keys to base-2 exponents, float64; 0-d on its own device.

    NaN for a temperature that is not positive.
    """
    scale = LOG2_E / temperature.double()
    return torch.where(scale > 0, scale, math.nan)


def plain_limit(entries: int) -> float:
    """Greatest bound on base-2 exponents for plain float32 sums over a positive and `entries` entries.

    Such sums neither overflow nor lose all terms to underflow; 1% is left for the rounding of norms.
    """
    return (126.0 - math.log2(entries + 1)) / 1.01


def _module(backend: str) -> Backend:
    # Imported here, because the package also works without Triton.
    return cast(Backend, importlib.import_module(f"pscl_kernels.queue_info_nce.{backend}"))


def _present(q: Tensor, groups: Tensor | None) -> Tensor:
    return q.new_ones(q.shape[0], dtype=torch.bool) if groups is None else groups >= 0


@torch.library.custom_op("pscl_kernels::queue_info_nce", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    queue: Tensor,
    groups: Tensor | None,
    queue_groups: Tensor | None,
    subgroups: Tensor | None,
    queue_subgroups: Tensor | None,
    same_weight: Tensor | None,
    any_weight: Tensor | None,
    row_weights: Tensor | None,
    normalise_targets: bool,
    temperature: Tensor,
    group_name: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, coefficient, mass, lse, *Columns)."""
    with computing_on(q):
        module = _module(backend)
        labels = Labels(groups, queue_groups, subgroups, queue_subgroups, same_weight, any_weight)
        columns, masses = module.columns(q, queue, labels)
        present = _present(q, groups)
        rows = module.forward(q, k, present, temperature, columns, masses)
        count = total(present.sum(), group_name)
        loss, coefficient, lse = module.losses(
            rows, columns.bound, present, row_weights, count, normalise_targets
        )
        return loss, coefficient, rows.mass, lse, *columns


@_forward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    queue: Tensor,
    groups: Tensor | None,
    queue_groups: Tensor | None,
    subgroups: Tensor | None,
    queue_subgroups: Tensor | None,
    same_weight: Tensor | None,
    any_weight: Tensor | None,
    row_weights: Tensor | None,
    normalise_targets: bool,
    temperature: Tensor,
    group_name: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    rows, entries = q.shape[0], queue.shape[0]
    width, stored = _module(backend).layout(q)
    kinds = int(same_weight is not None) + int(any_weight is not None)
    return (
        q.new_empty((), dtype=dtype),
        q.new_empty(rows, dtype=dtype),
        q.new_empty(rows, dtype=dtype),
        q.new_empty(rows, dtype=dtype),
        q.new_empty((entries, width), dtype=stored),
        q.new_empty((), dtype=torch.int64),
        q.new_empty((), dtype=dtype),
        q.new_empty((kinds, entries, width), dtype=dtype),
        q.new_empty((kinds, rows), dtype=torch.int64),
    )


@torch.library.custom_op("pscl_kernels::queue_info_nce_backward", mutates_args=())
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    groups: Tensor | None,
    temperature: Tensor,
    coefficient: Tensor,
    mass: Tensor,
    lse: Tensor,
    columns: list[Tensor],
    with_k: bool,
    with_temperature: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q (N, D), of k (N, D), or (0,) without `with_k`, and of the temperature, 0-d."""
    with computing_on(q):
        grad_q, grad_k, radial = _module(backend).backward(
            q,
            k,
            _present(q, groups),
            temperature,
            Columns(*columns),
            lse,
            mass,
            (grad * coefficient).to(coefficient.dtype),
            with_k,
        )
        if not with_temperature:
            return grad_q, grad_k, torch.zeros_like(temperature)
        # The temperature only enters through the logits, which are inverse to it.
        return (
            grad_q,
            grad_k,
            (-radial.to(temperature.device).double() / temperature.double() ** 2).to(temperature),
        )


@_backward.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    groups: Tensor | None,
    temperature: Tensor,
    coefficient: Tensor,
    mass: Tensor,
    lse: Tensor,
    columns: list[Tensor],
    with_k: bool,
    with_temperature: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape if with_k else 0), torch.empty_like(temperature)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, k, _, groups, *_, temperature, _, ctx.backend = inputs
    ctx.save_for_backward(q, k, groups, temperature, *output[1:])
    ctx.set_materialize_grads(False)


def _autograd(ctx, grad, *_):  # type: ignore[no-untyped-def]
    gradients = [None] * 14
    if grad is None:
        return tuple(gradients)
    q, k, groups, temperature, coefficient, mass, lse, *columns = ctx.saved_tensors
    with_k, with_temperature = ctx.needs_input_grad[1], ctx.needs_input_grad[11]
    grad_q, grad_k, dtau = _backward(
        grad,
        q,
        k,
        groups,
        temperature,
        coefficient,
        mass,
        lse,
        columns,
        with_k,
        with_temperature,
        ctx.backend,
    )
    for place, gradient in ((0, grad_q), (1, grad_k), (11, dtau)):
        if ctx.needs_input_grad[place]:
            gradients[place] = gradient
    return tuple(gradients)


_forward.register_autograd(_autograd, setup_context=_setup_context)
