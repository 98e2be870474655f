# mypy: disable-error-code="import-not-found, no-untyped-call, no-any-return, arg-type"
"""Peers: implementations by others, each behind one short function.

An adapter imports its library when it is called, so that one that is not installed is skipped. It computes one task:
- "loss": (q, k, groups, temperature) -> mean NT-Xent of q, k (N, D), groups (N,) or None for a group per pair
- "queue": (q, k, entries, temperature) -> mean InfoNCE of q, k (N, D) against unit entries (Q, D)
"""

import importlib.util
import math
import sys
import types
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

Adapter = Callable[..., Tensor]


class Peer(NamedTuple):
    """One implementation of one task."""

    name: str
    package: str
    """Distribution that it comes from."""
    task: Literal["loss", "queue"]
    call: Adapter
    differs: str = ""
    """What it computes differently from ours."""
    groups: bool = False
    """Whether it can leave out pairs of one group."""
    self_pair: bool = False
    """Whether a row's product with itself is among its negatives."""
    gradient_on_cpu: bool = True
    most_rows: int = 65_536
    """Most rows with which it is tried."""
    needs_gpu: bool = False


PEERS: list[Peer] = []


def peer(
    name: str, package: str, task: Literal["loss", "queue"], **about: Any
) -> Callable[[Adapter], Adapter]:
    """Decorator that adds an adapter to `PEERS`; `about` are further fields of `Peer`."""

    def add(call: Adapter) -> Adapter:
        PEERS.append(Peer(name, package, task, call, **about))
        return call

    return add


def unit_rows(q: Tensor, k: Tensor) -> Tensor:
    """(2N, D) rows of q, then k, divided by their norms, in their dtype."""
    return normalize(torch.cat([q, k]).float(), dim=1).to(q.dtype)


def partners(n: int, device: torch.device) -> Tensor:
    """(2N,) row of the same pair in the other view."""
    return torch.arange(2 * n, device=device).roll(n)


def own_and_partner(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows (2N, D), and for each the row of the other view."""
    z = unit_rows(q, k)
    return z, z[partners(len(q), q.device)]


def group_of_rows(q: Tensor, groups: Tensor | None) -> Tensor:
    """(2N,) group of each row; without groups each row is its own, so that only its own product is left out."""
    return torch.arange(2 * len(q), device=q.device) if groups is None else torch.cat([groups, groups])


def with_positive(negatives: Tensor, positive: Tensor) -> Tensor:
    """Mean loss from the logsumexp over the negatives and the logit of the positive."""
    return (torch.logaddexp(positive, negatives) - positive).mean()


OWN_PRODUCT = "a row's own product is among its negatives"

# --- torch ------------------------------------------------------------------------------------------------------------


@peer("torch, eager", "torch", "loss", groups=True)
def eager(q: Tensor, k: Tensor, groups: Tensor | None, temperature: float) -> Tensor:
    z = unit_rows(q, k)
    logits = (z @ z.T).float() / temperature
    positive = torch.cat([logits.diagonal(len(q)), logits.diagonal(-len(q))])
    if groups is None:
        return (logits.fill_diagonal_(-math.inf).logsumexp(1) - positive).mean()
    group = group_of_rows(q, groups)
    return with_positive(logits.masked_fill(group[:, None] == group, -math.inf).logsumexp(1), positive)


@peer("torch, eager", "torch", "queue")
def eager_queue(q: Tensor, k: Tensor, entries: Tensor, temperature: float) -> Tensor:
    z, key = unit_rows(q, k).chunk(2)
    positive = (z.float() * key.float()).sum(1) / temperature
    return with_positive(((z @ entries.T).float() / temperature).logsumexp(1), positive)


CHUNK = 4096
"""Rows of a chunk, which is computed again in the backward pass."""


@lru_cache
def _chunk(temperature: float) -> Adapter:
    def call(rows: Tensor, z: Tensor, first: int, group: Tensor) -> Tensor:
        """Sum of the losses of rows [first, first + len(rows))."""
        row = torch.arange(first, first + rows.shape[0], device=z.device)
        partner = (row + z.shape[0] // 2) % z.shape[0]
        column = torch.arange(z.shape[0], device=z.device)
        logits = (rows @ z.T).float() / temperature
        excluded = (group[row][:, None] == group) & (column != partner[:, None])
        log_sum = logits.masked_fill(excluded, -math.inf).logsumexp(1)
        return (log_sum - logits.gather(1, partner[:, None]).squeeze(1)).sum()

    return torch.compile(call)


@peer("torch.compile, chunks", "torch", "loss", groups=True)
def compiled(q: Tensor, k: Tensor, groups: Tensor | None, temperature: float) -> Tensor:
    z, group = unit_rows(q, k), group_of_rows(q, groups)
    total = z.new_zeros((), dtype=torch.float32)
    for first in range(0, len(z), CHUNK):
        rows = z[first : first + CHUNK]
        total = total + checkpoint(_chunk(temperature), rows, z, first, group, use_reentrant=False)
    return total / len(z)


@lru_cache
def _queue_chunk(temperature: float) -> Adapter:
    def call(rows: Tensor, keys: Tensor, entries: Tensor) -> Tensor:
        positive = (rows.float() * keys.float()).sum(1) / temperature
        negatives = ((rows @ entries.T).float() / temperature).logsumexp(1)
        return (torch.logaddexp(positive, negatives) - positive).sum()

    return torch.compile(call)


@peer("torch.compile, chunks", "torch", "queue")
def compiled_queue(q: Tensor, k: Tensor, entries: Tensor, temperature: float) -> Tensor:
    z, key = unit_rows(q, k).chunk(2)
    total = z.new_zeros((), dtype=torch.float32)
    for rows, keys in zip(z.split(CHUNK), key.split(CHUNK), strict=True):
        total = total + checkpoint(_queue_chunk(temperature), rows, keys, entries, use_reentrant=False)
    return total / len(z)


# FlexAttention: its logsumexp under a block mask. Rows are sorted by group, so that whole blocks drop out.


@lru_cache(maxsize=1)
def _mask(n: int, groups: Tensor | None, device: torch.device) -> tuple[Any, Tensor, Tensor]:
    """(block mask, order of the rows, place of each sorted row's partner)."""
    from torch.nn.attention.flex_attention import create_block_mask

    rows = torch.arange(2 * n, device=device)
    group = rows if groups is None else torch.cat([groups, groups])
    order = group.argsort(stable=True)
    place = torch.empty_like(order).scatter_(0, order, rows)
    partner, group = place.roll(-n)[order], group[order]

    def kept(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (group[i] != group[j]) | (partner[i] == j)

    compiled = device.type == "cuda"
    return create_block_mask(kept, 1, 1, 2 * n, 2 * n, device=str(device), _compile=compiled), order, partner


@lru_cache(maxsize=1)
def _flex(device: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False) if device == "cuda" else flex_attention


def _flex_log_sums(queries: Tensor, keys: Tensor, mask: Any, scale: float) -> Tensor:
    values = keys.new_zeros((1, 1, len(keys), 16))  # of the smallest width that it takes; not needed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about return_lse, and about running without compilation on a CPU
        _, found = _flex(keys.device.type)(
            queries[None, None], keys[None, None], values, block_mask=mask, scale=scale, return_lse=True
        )
    return found[0, 0]


@peer("FlexAttention", "torch", "loss", differs="the time does not include making the block mask", groups=True,
      gradient_on_cpu=False)  # fmt: skip
def flex(q: Tensor, k: Tensor, groups: Tensor | None, temperature: float) -> Tensor:
    mask, order, partner = _mask(len(q), groups, q.device)
    z = unit_rows(q, k)[order]
    positive = (z.float() * z[partner].float()).sum(1) / temperature
    return (_flex_log_sums(z, z, mask, 1 / temperature) - positive).mean()


@peer("FlexAttention", "torch", "queue", gradient_on_cpu=False)
def flex_queue(q: Tensor, k: Tensor, entries: Tensor, temperature: float) -> Tensor:
    z, key = unit_rows(q, k).chunk(2)
    positive = (z.float() * key.float()).sum(1) / temperature
    return with_positive(_flex_log_sums(z, entries, None, 1 / temperature), positive)


# Fused attention (SDPA). With the rows x as keys and as values it returns sum_j p_ij x_j and the logsumexp over j:
# gradient and loss for a queue with hard labels. Plain NT-Xent takes a second call with values x_j / l_j, for the part
# of the gradient that a row gets as a negative of others.


def _flash(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(output (M, D), logsumexp (M,) float32) of queries (M, D), keys and values (K, D)."""
    names = {
        "cpu": "_scaled_dot_product_flash_attention_for_cpu",
        "cuda": "_scaled_dot_product_flash_attention",
    }
    call: Any = getattr(torch.ops.aten, names[q.device.type])
    found = call(*(x[None, None].contiguous() for x in (q, k, v)), scale=scale)
    return found[0][0, 0], found[1].reshape(-1)[: len(q)].float()


class _AttentionQueue(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, key: Tensor, entries: Tensor, beta: float) -> Tensor:
        out, negatives = _flash(z, entries, entries, beta)
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
        return dz.to(z.dtype), (-factor * z.float()).to(z.dtype), None, None


class _AttentionLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, partner: Tensor, beta: float) -> Tensor:
        out, with_self = _flash(z, z, z, beta)
        own = torch.exp(beta * z.float().square().sum(1) - with_self)
        log_sum = with_self + torch.log1p(-own)
        ctx.save_for_backward(z, partner, out, with_self, own, log_sum)
        ctx.beta = beta
        return (log_sum - beta * (z.float() * z[partner].float()).sum(1)).mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        z, partner, out, with_self, own, log_sum = ctx.saved_tensors
        x = z.float()
        middle = log_sum.mean()
        relative = (middle - log_sum).exp()[:, None]  # proportional to 1 / l_j, near one
        as_negative, _ = _flash(z, z, (relative * x).to(z.dtype), ctx.beta)
        scale = (with_self - log_sum).exp()[:, None]
        dz = scale * (out.float() - own[:, None] * x)
        dz += (with_self - middle).exp()[:, None] * (as_negative.float() - own[:, None] * relative * x)
        dz -= 2 * x[partner]
        return (dz * (grad * ctx.beta / z.shape[0])).to(z.dtype), None, None


ASSEMBLED = "the adapter assembles the gradient from the outputs of attention"


@peer("SDPA flash, two passes", "torch", "loss", differs=ASSEMBLED)
def attention(q: Tensor, k: Tensor, groups: Tensor | None, temperature: float) -> Tensor:
    return _AttentionLoss.apply(unit_rows(q, k), partners(len(q), q.device), 1 / temperature)


@peer("SDPA flash", "torch", "queue", differs=f"{ASSEMBLED}; hard labels")
def attention_queue(q: Tensor, k: Tensor, entries: Tensor, temperature: float) -> Tensor:
    z, key = unit_rows(q, k).chunk(2)
    return _AttentionQueue.apply(z, key, entries, 1 / temperature)


# --- other packages ---------------------------------------------------------------------------------------------------


def bare_packages(*names: str) -> None:
    """Make packages importable without running their `__init__`, which imports more than the adapter needs."""
    for name in names:
        if name in sys.modules:
            continue
        parent, _, last = name.rpartition(".")
        if parent:
            places = [f"{folder}/{last}" for folder in sys.modules[parent].__path__]
        else:
            found = importlib.util.find_spec(name)
            if found is None or found.submodule_search_locations is None:
                raise ImportError(f"No module named '{name}'")
            places = list(found.submodule_search_locations)
        module = types.ModuleType(name)
        module.__path__ = places
        sys.modules[name] = module


@peer("Inf-CL", "inf-cl", "loss", differs=f"products of rows as TF32; {OWN_PRODUCT}", self_pair=True,
      needs_gpu=True)  # fmt: skip
def inf_cl(q: Tensor, k: Tensor, groups: Tensor | None, temperature: float) -> Tensor:
    from inf_cl import cal_flash_loss

    z = unit_rows(q, k)
    if len(z) % 64:
        raise ValueError("reads beyond its input unless the number of rows is a multiple of 64")
    width = min(256, z.shape[1])  # most numbers of a row that its kernels take at once
    labels = partners(len(q), q.device)
    return cal_flash_loss(z, z, labels=labels, scale=1 / temperature, head_dim=width).mean()


@peer("cut-cross-entropy", "cut-cross-entropy", "loss", self_pair=True,
      differs=f"on a GPU leaves out small gradients, and its locks make sums vary; {OWN_PRODUCT}")  # fmt: skip
def cut_cross_entropy(q: Tensor, k: Tensor, groups: Tensor | None, temperature: float) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    z = unit_rows(q, k)
    scaled = (z.float() / temperature).to(z.dtype)
    kind = "cce" if q.device.type == "cuda" else "torch_compile"
    return linear_cross_entropy(scaled, z, partners(len(q), q.device), impl=kind)


@peer("Lightly NTXentLoss", "lightly", "loss")
def lightly(q: Tensor, k: Tensor, groups: Tensor | None, temperature: float) -> Tensor:
    # The loss needs torch only; the packages around it import torchvision and lightning.
    bare_packages("lightly", "lightly.loss", "lightly.utils", "lightly.models", "lightly.models.modules")
    sys.modules.setdefault("lightly.models.utils", types.ModuleType("lightly.models.utils"))
    from lightly.loss.ntx_ent_loss import NTXentLoss

    return NTXentLoss(temperature=temperature)(q, k)


@peer("info-nce-pytorch", "info-nce-pytorch", "loss", differs=OWN_PRODUCT, self_pair=True)
def info_nce_pytorch(q: Tensor, k: Tensor, groups: Tensor | None, temperature: float) -> Tensor:
    from info_nce import info_nce

    return info_nce(*own_and_partner(q, k), temperature=temperature)


@peer("open_clip ClipLoss", "open_clip_torch", "loss", self_pair=True,
      differs=f"computes both directions, which are the same here; {OWN_PRODUCT}")  # fmt: skip
def open_clip(q: Tensor, k: Tensor, groups: Tensor | None, temperature: float) -> Tensor:
    bare_packages("open_clip")  # the loss needs torch only
    from open_clip.loss import ClipLoss

    return ClipLoss()(*own_and_partner(q, k), 1 / temperature)


@peer("memeff MemoryEfficientCLIPLoss", "memeff", "loss", self_pair=True, needs_gpu=True,
      differs=f"computes both directions, which are the same here; {OWN_PRODUCT}")  # fmt: skip
def memeff(q: Tensor, k: Tensor, groups: Tensor | None, temperature: float) -> Tensor:
    from memeff import MemoryEfficientCLIPLoss

    # By default its gradient is scaled by a function of the batch size.
    loss = MemoryEfficientCLIPLoss(temperature=temperature, normalized_inputs=True, stable=False)
    return loss(*own_and_partner(q, k))


@peer(
    "KeOps", "pykeops", "loss", differs="float32 without tensor cores; group numbers as float32", groups=True
)
def keops(q: Tensor, k: Tensor, groups: Tensor | None, temperature: float) -> Tensor:
    from pykeops.torch import LazyTensor

    z = unit_rows(q, k).float()
    group = group_of_rows(q, groups).float()
    x, y = LazyTensor(z[:, None, :].contiguous()), LazyTensor(z[None, :, :].contiguous())
    a, b = LazyTensor(group[:, None, None].contiguous()), LazyTensor(group[None, :, None].contiguous())
    left_out = (0.5 - (a - b).square()).step()
    log_sum = ((x | y) / temperature - 1e4 * left_out).logsumexp(dim=1).reshape(-1)
    positive = (z * z.roll(len(q), 0)).sum(1) / temperature
    return (log_sum - positive).mean() if groups is None else with_positive(log_sum, positive)
