"""Implementations of others, each behind one small adapter."""

from bench.gpu.peers import (
    cut_cross_entropy,
    flash_kmeans,
    flex_attention,
    inf_cl,
    info_nce_pytorch,
    keops,
    liger,
    lightly,
    metric_learning,
    open_clip,
    sdpa,
    torch_compiled,
    torch_eager,
)
from bench.gpu.peers.base import Peer

MODULES = (
    torch_eager,
    torch_compiled,
    flex_attention,
    sdpa,
    inf_cl,
    cut_cross_entropy,
    lightly,
    metric_learning,
    info_nce_pytorch,
    open_clip,
    keops,
    liger,
    flash_kmeans,
)

PEERS: tuple[Peer, ...] = tuple(peer for module in MODULES for peer in module.PEERS)
