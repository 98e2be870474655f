"""Pretraining: data, the task of the training loop, inspection."""

from pscl_hpc.pretraining.data import Batch, PretrainData, make_views
from pscl_hpc.pretraining.task import PretrainTask, pretrain

__all__ = ["Batch", "PretrainData", "PretrainTask", "make_views", "pretrain"]
