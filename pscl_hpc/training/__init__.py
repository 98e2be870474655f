"""What both training stages share: device, ranks, precision, optimiser, schedule, stopping."""

from pscl_hpc.models.recompute import checkpoint_blocks
from pscl_hpc.training.batchnorm import synchronise_batchnorm
from pscl_hpc.training.device import autocast, setup_device
from pscl_hpc.training.interruption import (
    StopRequested,
    clear_stop,
    how_to_go_on,
    request_stop,
    stop_on_signals,
    stop_reason,
)
from pscl_hpc.training.optimiser import build_optimiser, gradient_norm, parameter_groups, scaled_lr
from pscl_hpc.training.parallel import data_parallel
from pscl_hpc.training.ranks import Place, Ranks, join_ranks, read_place
from pscl_hpc.training.readers import reader_options
from pscl_hpc.training.schedule import lr_factor, set_lr

__all__ = [
    "Place",
    "Ranks",
    "StopRequested",
    "autocast",
    "build_optimiser",
    "checkpoint_blocks",
    "clear_stop",
    "data_parallel",
    "gradient_norm",
    "how_to_go_on",
    "join_ranks",
    "lr_factor",
    "parameter_groups",
    "read_place",
    "reader_options",
    "request_stop",
    "scaled_lr",
    "set_lr",
    "setup_device",
    "stop_on_signals",
    "stop_reason",
    "synchronise_batchnorm",
]
