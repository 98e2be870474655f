"""Refusal of function transforms that the operations do not support, instead of wrong or obscure results."""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def refuse_transforms(operation: str, *tensors: Tensor | float) -> None:
    """Raise NotImplementedError inside torch.func.grad, jvp and what is built on them, and for forward-mode tangents.

    `operation` is the name to report, `tensors` are its differentiable arguments. torch.func.vmap alone is supported.
    """
    if torch.compiler.is_compiling():
        return  # the compiler does not trace these questions; it captures the operator itself
    stack = torch._C._functorch.get_interpreter_stack() or []
    differentiating = any(
        level.key() in (torch._C._functorch.TransformType.Grad, torch._C._functorch.TransformType.Jvp)
        for level in stack
    )
    if differentiating or any(_has_tangent(x) for x in tensors):
        raise NotImplementedError(
            f"{operation} has a first-order reverse-mode gradient only: use loss.backward() or torch.autograd.grad "
            "instead of torch.func.grad, torch.func.jvp and torch.autograd.forward_ad"
        )


def _has_tangent(x: Tensor | float) -> bool:
    if not isinstance(x, Tensor) or getattr(forward_ad, "_current_level", -1) < 0:
        return False
    return forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]
