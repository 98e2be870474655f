# mypy: disable-error-code="no-untyped-call"
"""torch's fused attention, flash and cuDNN: its output is the gradient of its logsumexp.

With keys and values the same rows x, attention gives out_i = sum_j p_ij x_j and the logsumexp over j, which together
are loss and gradient of a queue with hard labels. Plain NT-Xent takes a second call with values x_j / l_j for what a
row suffers as a negative.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.gpu.peers.base import Loss, Peer, Queue, partner_of, unit_rows
from bench.gpu.setting import Setting

Attend = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
"""(queries (M, D), keys (K, D), values (K, D), scale) -> (output (M, D), logsumexp (M,) float32)."""


def flash(setting: Setting) -> Attend:
    def call(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        operators: Any = torch.ops.aten
        arguments = [x[None, None].contiguous() for x in (q, k, v)]
        if setting.tiny:
            found = operators._scaled_dot_product_flash_attention_for_cpu(*arguments, scale=scale)
        else:
            found = operators._scaled_dot_product_flash_attention(*arguments, scale=scale)
        return found[0][0, 0], found[1].reshape(-1)[: q.shape[0]].float()

    return call


def cudnn(setting: Setting) -> Attend:
    def call(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        operator: Any = torch.ops.aten._scaled_dot_product_cudnn_attention
        arguments = [x[None, None].contiguous() for x in (q, k, v)]
        found = operator(*arguments, None, True, scale=scale)
        return found[0][0, 0], found[1].reshape(-1)[: q.shape[0]].float()

    return call


class _Queue(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, key: Tensor, entries: Tensor, beta: float, attend: Attend) -> Tensor:
        out, negatives = attend(z, entries, entries, beta)
        positive = beta * (z.float() * key.float()).sum(1)
        log_sum = torch.logaddexp(positive, negatives)
        ctx.save_for_backward(z, key, out, (negatives - log_sum).exp())
        ctx.beta = beta
        return (log_sum - positive).mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        z, key, out, share = ctx.saved_tensors
        factor = (grad * ctx.beta / z.shape[0]) * share[:, None]
        dz = factor * (out.float() - key.float())
        return dz.to(z.dtype), (-factor * z.float()).to(z.dtype), None, None, None


class _Plain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, partner: Tensor, beta: float, attend: Attend) -> Tensor:
        out, with_self = attend(z, z, z, beta)
        own = torch.exp(beta * z.float().square().sum(1) - with_self)
        log_sum = with_self + torch.log1p(-own)
        ctx.save_for_backward(z, partner, out, with_self, own, log_sum)
        ctx.beta, ctx.attend = beta, attend
        return (log_sum - beta * (z.float() * z[partner].float()).sum(1)).mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        z, partner, out, with_self, own, log_sum = ctx.saved_tensors
        x = z.float()
        middle = log_sum.mean()
        relative = (middle - log_sum).exp()[:, None]  # 1 / l_j, near one
        suffered, _ = ctx.attend(z, z, (relative * x).to(z.dtype), ctx.beta)
        scale = (with_self - log_sum).exp()[:, None]
        dz = scale * (out.float() - own[:, None] * x)
        dz += (with_self - middle).exp()[:, None] * (suffered.float() - own[:, None] * relative * x)
        dz -= 2 * x[partner]
        return (dz * (grad * ctx.beta / z.shape[0])).to(z.dtype), None, None, None


def loss(attend: Callable[[Setting], Attend]) -> Callable[[Setting, float], Loss]:
    def build(setting: Setting, temperature: float) -> Loss:
        attention = attend(setting)

        def call(q: Tensor, k: Tensor, groups: Tensor | None) -> Tensor:
            found: Tensor = _Plain.apply(
                unit_rows(q, k), partner_of(q.shape[0], q.device), 1 / temperature, attention
            )
            return found

        return call

    return build


def queue(attend: Callable[[Setting], Attend]) -> Callable[[Setting, float], Queue]:
    def build(setting: Setting, temperature: float) -> Queue:
        attention = attend(setting)

        def call(q: Tensor, k: Tensor, entries: Tensor) -> Tensor:
            z, key = unit_rows(q, k).chunk(2)
            found: Tensor = _Queue.apply(z, key, entries, 1 / temperature, attention)
            return found

        return call

    return build


NOTE = "gradient assembled here from the outputs of attention"

HARD = f"{NOTE}; hard labels"

PEERS = (
    Peer("SDPA flash, two passes", "torch", "loss", loss(flash), differs=NOTE, most_rows=262_144),
    Peer(
        "SDPA cuDNN, two passes",
        "torch",
        "loss",
        loss(cudnn),
        differs=NOTE,
        most_rows=262_144,
        needs_gpu=True,
    ),
    Peer("SDPA flash", "torch", "queue", queue(flash), differs=HARD, most_rows=262_144),
    Peer("SDPA cuDNN", "torch", "queue", queue(cudnn), differs=HARD, most_rows=262_144, needs_gpu=True),
)
