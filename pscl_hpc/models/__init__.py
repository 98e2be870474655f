"""U-Net trunk, projection heads, weights on disk."""

from pscl_hpc.models.bilinear import BilinearDecoder
from pscl_hpc.models.heads import GlobalHead, PatchHead
from pscl_hpc.models.unet import Features, SegmentationNet, UNet
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
    "TRUNK_FILE",
    "BilinearDecoder",
    "Features",
    "GlobalHead",
    "ModelCard",
    "PatchHead",
    "SegmentationNet",
    "UNet",
    "load_segmentation",
    "load_trunk",
    "read_card",
    "save_segmentation",
    "save_trunk",
]
