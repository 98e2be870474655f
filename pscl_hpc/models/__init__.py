"""Trunks (one module each), projection heads, the segmentation model, weights files."""

from pscl_hpc.models.heads import GlobalHead, PatchHead
from pscl_hpc.models.recompute import checkpoint_blocks
from pscl_hpc.models.segmentation import BilinearDecoder, SegmentationNet
from pscl_hpc.models.trunk import (
    TRUNKS,
    AnyTrunk,
    Features,
    MapShape,
    Trunk,
    TrunkConfig,
    TrunkMaps,
    build_trunk,
)
from pscl_hpc.models.weights import (
    MODEL_FILE,
    TRUNK_FILE,
    ModelCard,
    load_segmentation,
    load_trunk,
    read_card,
    save_segmentation,
    save_trunk,
)

__all__ = [
    "MODEL_FILE",
    "TRUNKS",
    "TRUNK_FILE",
    "AnyTrunk",
    "BilinearDecoder",
    "Features",
    "GlobalHead",
    "MapShape",
    "ModelCard",
    "PatchHead",
    "SegmentationNet",
    "Trunk",
    "TrunkConfig",
    "TrunkMaps",
    "build_trunk",
    "checkpoint_blocks",
    "load_segmentation",
    "load_trunk",
    "read_card",
    "save_segmentation",
    "save_trunk",
]
