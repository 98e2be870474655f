"""Training: the loop and its tasks, ranks, device, precision, optimiser, learning rate, stopping."""

from pscl_hpc.training.device import autocast, setup_device
from pscl_hpc.training.joining import join_ranks
from pscl_hpc.training.loop import Loop
from pscl_hpc.training.optimiser import (
    build_optimiser,
    lr_factor,
    parameter_groups,
    scaled_lr,
    set_lr,
)
from pscl_hpc.training.ranks import Ranks, read_place
from pscl_hpc.training.run import check_unchanged, train
from pscl_hpc.training.stopping import (
    StopRequested,
    clear_stop,
    request_stop,
    stop_on_signals,
    stop_reason,
)
from pscl_hpc.training.task import StepLoss, Task

__all__ = [
    "Loop",
    "Ranks",
    "StepLoss",
    "StopRequested",
    "Task",
    "autocast",
    "build_optimiser",
    "check_unchanged",
    "clear_stop",
    "join_ranks",
    "lr_factor",
    "parameter_groups",
    "read_place",
    "request_stop",
    "scaled_lr",
    "set_lr",
    "setup_device",
    "stop_on_signals",
    "stop_reason",
    "train",
]
