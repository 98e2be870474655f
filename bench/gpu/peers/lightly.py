# mypy: disable-error-code="import-not-found"
"""Lightly's NTXentLoss."""

import sys
import types

from torch import Tensor

from bench.gpu.peers.base import Loss, Peer, bare_packages
from bench.gpu.setting import Setting


def loss(setting: Setting, temperature: float) -> Loss:
    # The loss needs torch alone; the packages around it want torchvision and lightning.
    bare_packages("lightly", "lightly.loss", "lightly.utils", "lightly.models", "lightly.models.modules")
    sys.modules.setdefault(
        "lightly.models.utils", types.ModuleType("lightly.models.utils")
    )  # not used by the loss
    from lightly.loss.ntx_ent_loss import NTXentLoss

    module = NTXentLoss(temperature=temperature)

    def call(q: Tensor, k: Tensor, groups: Tensor | None) -> Tensor:
        found: Tensor = module(q, k)
        return found

    return call


PEERS = (Peer("Lightly NTXentLoss", "lightly", "loss", loss),)
