"""The loss as one differentiable operator for all backends.

A backend is a module with the functions of `Backend`. This module has the parts that all backends share: the
collectives, the mean, the registration with torch (so that torch.compile sees one opaque operator) and the gradient of
the temperature.
"""

import importlib
import math
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from pscl_kernels.backends import computing_on
from pscl_kernels.ranks import check_same_shape, gather, rank_in, start_gather

LOG2_E = math.log2(math.e)

PLAIN_TEMPERATURE = 0.0136
"""Lowest temperature at which the sum of 2^21 exponentials does not overflow float32."""


class Prepared(NamedTuple):
    """The 2N rows of one rank, sorted as `rows.Sorting` says."""

    x: Tensor  # (2N, width) rows whose products are base-2 exponents; zero if the row takes no part
    positive: Tensor  # (2N,) exponent of each row's positive pair
    norm: Tensor  # (2N,) divisor of each row
    label: Tensor
    order: Tensor
    partner: Tensor


class Saved(NamedTuple):
    """Tensors for the backward pass: x, lse and label of all ranks, the others of this rank."""

    x: Tensor  # (world, 2N, width)
    lse: Tensor  # (world, 2N) base-2 logarithm of each row's sum of exponentials
    label: Tensor  # (world, 2N)
    norm: Tensor
    order: Tensor
    partner: Tensor
    number: Tensor  # 0-d int64: number of rows of all ranks that take part, at least 1


class Backend(Protocol):
    """Functions of a module that computes the loss."""

    def layout(self, q: Tensor) -> tuple[int, torch.dtype]:
        """Width and dtype of the prepared rows for features like `q`."""

    def prepare(self, q: Tensor, k: Tensor, groups: Tensor, temperature: Tensor) -> Prepared:
        """Normalise, scale, cast and sort the rows of q and k, (N, D)."""

    def local_sums(self, x: Tensor, label: Tensor, positive: Tensor, temperature: Tensor) -> Tensor:
        """Sums over the rank's own columns for `log_sums`, computed before those of other ranks arrive.

        x (2N, width), label and positive (2N,) of this rank.
        """

    def log_sums(
        self, x: Tensor, label: Tensor, positive: Tensor, rank: int, local: Tensor | None, temperature: Tensor
    ) -> Tensor:
        """(2N,) base-2 logarithm of each own row's sum of exponentials over its positive and all negatives.

        x (world, 2N, width) and label (world, 2N) of all ranks, `positive` of this one, `local` the result of
        `local_sums` or None. The sum runs over the shards of columns in the same order with and without `local`.
        """

    def mean(self, lse: Tensor, positive: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss of the rows that take part, 0-d, and `Saved.number`, from contiguous (world, 2N) tensors.

        The order of the sum is the same on every rank, so the loss is the same to the last bit.
        """

    def row_gradients(
        self, grad: Tensor, q: Tensor, k: Tensor, saved: Saved, rank: int, temperature: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the own q and k, (N, D), and <z, dx> of each own row, (2N,).

        dx_i = sum_j W_ij x_j + (E_ip / l_i + E_ip / l_p - 2) x_p for row weights of one, and zero for rows that take
        no part; dx * coefficient_of(...) is the gradient of the normalised row z.
        """

    def temperature_gradient(self, grad: Tensor, radial: Tensor, saved: Saved, temperature: Tensor) -> Tensor:
        """Gradient of the temperature, like it, from <z, dx> of all rows, (world, 2N)."""


def patch_nt_xent(
    q: Tensor,
    k: Tensor,
    groups: Tensor,
    temperature: Tensor,
    group_name: str,
    world_size: int,
    backend: str,
) -> Tensor:
    """Loss of `interface.patch_nt_xent`; q, k (N, D), groups (N,) int64, temperature 0-d on any device."""
    loss: Tensor = _forward(q, k, groups, temperature, group_name, world_size, backend)[0]
    return loss


def scale_of(temperature: Tensor) -> Tensor:
    """Factor from a normalised row to one whose products are base-2 exponents, float64; 0-d on its own device.

    NaN for a temperature that is not positive.
    """
    return torch.sqrt(LOG2_E / temperature.double())


def is_plain(temperature: Tensor) -> bool | None:
    """Whether plain sums are safe; None for a tensor on an accelerator, whose value the host never reads."""
    return float(temperature) >= PLAIN_TEMPERATURE if temperature.device.type == "cpu" else None


def coefficient_of(grad: Tensor, saved: Saved, temperature: Tensor) -> Tensor:
    """Factor, 0-d, from dx in `Backend.row_gradients` to the gradient of a normalised row, for the upstream `grad`."""
    weight = grad / saved.number
    return (weight / (temperature.double() * scale_of(temperature))).to(saved.lse.dtype)


def _module(backend: str) -> Backend:
    # Imported here, because the package also works without Triton.
    return cast(Backend, importlib.import_module(f"pscl_kernels.patch_nt_xent.{backend}"))


@torch.library.custom_op("pscl_kernels::patch_nt_xent", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    groups: Tensor,
    temperature: Tensor,
    group_name: str,
    world_size: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, *Saved)."""
    with computing_on(q):
        check_same_shape(q, group_name, world_size)
        module = _module(backend)
        own = module.prepare(q, k, groups, temperature)
        x_of_all = start_gather(own.x, group_name, world_size)
        label_of_all = start_gather(own.label, group_name, world_size)
        # Computed while the rows of other ranks are in transfer.
        local = module.local_sums(own.x, own.label, own.positive, temperature) if world_size > 1 else None
        x, label = x_of_all(), label_of_all()
        lse = module.log_sums(x, label, own.positive, rank_in(group_name), local, temperature).unsqueeze(0)
        positive = own.positive.unsqueeze(0)
        if world_size > 1:
            both = gather(torch.cat([lse, positive]), group_name, world_size)
            lse, positive = (part.contiguous() for part in both.unbind(1))
        loss, count = module.mean(lse, positive, label)
        return loss, x, lse, label, own.norm, own.order, own.partner, count


@_forward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    groups: Tensor,
    temperature: Tensor,
    group_name: str,
    world_size: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    rows = 2 * q.shape[0]
    width, stored = _module(backend).layout(q)
    own = groups.new_empty(rows)
    return (
        q.new_empty((), dtype=dtype),
        q.new_empty((world_size, rows, width), dtype=stored),
        q.new_empty((world_size, rows), dtype=dtype),
        groups.new_empty((world_size, rows)),
        q.new_empty(rows, dtype=dtype),
        own,
        torch.empty_like(own),
        groups.new_empty(()),
    )


@torch.library.custom_op("pscl_kernels::patch_nt_xent_backward", mutates_args=())
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    temperature: Tensor,
    saved: list[Tensor],
    with_temperature: bool,
    group_name: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, each (N, D), and of the temperature, 0-d, for the upstream gradient `grad`, 0-d."""
    with computing_on(q):
        kept = Saved(*saved)
        grad_q, grad_k, radial = _module(backend).row_gradients(
            grad, q, k, kept, rank_in(group_name), temperature
        )
        if not with_temperature:
            return grad_q, grad_k, torch.zeros_like(temperature)
        # The loss depends on temperature and rows only through x, which scales with temperature^(-1/2).
        of_all = gather(radial, group_name, kept.x.shape[0])
        return grad_q, grad_k, _module(backend).temperature_gradient(grad, of_all, kept, temperature)


@_backward.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    temperature: Tensor,
    saved: list[Tensor],
    with_temperature: bool,
    group_name: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    # The strides of a backend's results do not follow those of its inputs.
    return q.new_empty(q.shape), k.new_empty(k.shape), torch.empty_like(temperature)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, k, _, temperature, ctx.group_name, _, ctx.backend = inputs
    ctx.save_for_backward(q, k, temperature, *output[1:])
    ctx.set_materialize_grads(False)


def _autograd(ctx, grad, *_):  # type: ignore[no-untyped-def]
    if grad is None:
        return (None,) * 7
    q, k, temperature, *saved = ctx.saved_tensors
    with_temperature = ctx.needs_input_grad[3]
    grad_q, grad_k, dtau = _backward(
        grad, q, k, temperature, saved, with_temperature, ctx.group_name, ctx.backend
    )
    return grad_q, grad_k, None, dtau if with_temperature else None, None, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)
