# mypy: disable-error-code="import-not-found"
"""flash-kmeans: its assignment of points to centroids is the best patch of each template, without exclusion."""

from torch import Tensor

from bench.gpu.peers.base import Peer, Top
from bench.gpu.setting import Setting


def top1(setting: Setting, temperature: float) -> Top:
    from flash_kmeans.assign_euclid_triton import cosine_assign_triton

    def call(templates: Tensor, patches: Tensor) -> Tensor:
        found: Tensor = cosine_assign_triton(templates.contiguous(), patches)
        return found.long()

    return call


PEERS = (
    Peer(
        "flash-kmeans cosine assignment",
        "flash-kmeans",
        "top1",
        top1,
        differs="no exclusion: the best patch of each template alone",
        needs_gpu=True,
    ),
)
