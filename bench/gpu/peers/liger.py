# mypy: disable-error-code="import-not-found"
"""Liger-Kernel: fused losses for language models. It is looked through for a contrastive one."""

import pkgutil

from bench.gpu.peers.base import Loss, Peer
from bench.gpu.setting import Setting

WORDS = ("contrast", "nce", "xent", "simclr", "clip")


def loss(setting: Setting, temperature: float) -> Loss:
    import liger_kernel

    modules = [
        module.name for module in pkgutil.walk_packages(liger_kernel.__path__, onerror=lambda name: None)
    ]
    found = [name for name in modules if any(word in name.split("_") for word in WORDS)]
    if found:
        raise RuntimeError(f"has {', '.join(found)}, for which there is no adapter here")
    raise RuntimeError(f"has no contrastive loss among its {len(modules)} modules")


PEERS = (Peer("Liger-Kernel", "liger-kernel", "loss", loss),)
