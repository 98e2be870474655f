"""Pretraining: data, loop, inspection."""

from pscl_hpc.pretraining.data import Batch, PretrainData, make_views
from pscl_hpc.pretraining.inspection import INSPECTION_FILE
from pscl_hpc.pretraining.trainer import Trainer, pretrain

__all__ = ["INSPECTION_FILE", "Batch", "PretrainData", "Trainer", "make_views", "pretrain"]
