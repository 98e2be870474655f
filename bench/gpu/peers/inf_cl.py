# mypy: disable-error-code="import-not-found"
"""Inf-CL (Inf-CLIP): a tiled logsumexp in Triton, forward and two backward kernels."""

from torch import Tensor

from bench.gpu.peers.base import Loss, Peer, partner_of, unit_rows
from bench.gpu.setting import Setting

HEAD = 256
"""Widest part of a row that its kernels take in one piece."""


def loss(setting: Setting, temperature: float) -> Loss:
    from inf_cl import cal_flash_loss

    def call(q: Tensor, k: Tensor, groups: Tensor | None) -> Tensor:
        z = unit_rows(q, k)
        if z.shape[0] % 64:
            raise ValueError("reads beyond its input where the rows are no multiple of 64")
        width = min(HEAD, z.shape[1])
        labels = partner_of(q.shape[0], q.device)
        rows: Tensor = cal_flash_loss(z, z, labels=labels, scale=1 / temperature, head_dim=width)
        return rows.mean()

    return call


PEERS = (
    Peer(
        "Inf-CL",
        "inf-cl",
        "loss",
        loss,
        differs="products of rows as TF32; a row's own product stays among its negatives",
        self_pair=True,
        most_rows=262_144,
        needs_gpu=True,
    ),
)
