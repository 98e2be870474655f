# mypy: disable-error-code="import-not-found"
"""ClipLoss of open_clip."""

from torch import Tensor

from bench.gpu.peers.base import Loss, Peer, bare_packages, partner_of, unit_rows
from bench.gpu.setting import Setting


def loss(setting: Setting, temperature: float) -> Loss:
    bare_packages("open_clip")  # the loss needs torch alone
    from open_clip.loss import ClipLoss

    module = ClipLoss()

    def call(q: Tensor, k: Tensor, groups: Tensor | None) -> Tensor:
        z = unit_rows(q, k)
        found: Tensor = module(z, z[partner_of(q.shape[0], q.device)], 1 / temperature)
        return found

    return call


PEERS = (
    Peer(
        "open_clip ClipLoss",
        "open_clip_torch",
        "loss",
        loss,
        differs="computes both directions, which are the same here; a row's own product stays among its negatives",
        self_pair=True,
    ),
)
