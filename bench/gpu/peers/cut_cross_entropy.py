# mypy: disable-error-code="import-not-found"
"""Cut cross-entropy: linear cross entropy whose classifier is the rows themselves."""

from torch import Tensor

from bench.gpu.peers.base import Loss, Peer, partner_of, unit_rows
from bench.gpu.setting import Setting


def loss(setting: Setting, temperature: float) -> Loss:
    from cut_cross_entropy import linear_cross_entropy

    implementation = "torch_compile" if setting.tiny else "cce"

    def call(q: Tensor, k: Tensor, groups: Tensor | None) -> Tensor:
        z = unit_rows(q, k)
        targets = partner_of(q.shape[0], q.device)
        scaled = (z.float() / temperature).to(z.dtype)
        found: Tensor = linear_cross_entropy(scaled, z, targets, impl=implementation)
        return found

    return call


PEERS = (
    Peer(
        "cut-cross-entropy",
        "cut-cross-entropy",
        "loss",
        loss,
        differs="on a GPU leaves small gradients out, and locks, so that sums vary; "
        "a row's own product stays among its negatives",
        self_pair=True,
        most_rows=262_144,
    ),
)
