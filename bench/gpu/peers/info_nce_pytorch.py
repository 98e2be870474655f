# mypy: disable-error-code="import-not-found"
"""InfoNCE of info-nce-pytorch."""

from torch import Tensor

from bench.gpu.peers.base import Loss, Peer, partner_of, unit_rows
from bench.gpu.setting import Setting


def loss(setting: Setting, temperature: float) -> Loss:
    from info_nce import info_nce

    def call(q: Tensor, k: Tensor, groups: Tensor | None) -> Tensor:
        z = unit_rows(q, k)
        found: Tensor = info_nce(z, z[partner_of(q.shape[0], q.device)], temperature=temperature)
        return found

    return call


PEERS = (
    Peer(
        "info-nce-pytorch",
        "info-nce-pytorch",
        "loss",
        loss,
        differs="a row's own product stays among its negatives",
        self_pair=True,
    ),
)
