"""What both training stages share: device, precision, optimiser, schedule."""

from pscl_hpc.training.device import autocast, setup_device
from pscl_hpc.training.optimiser import Lars, build_optimiser, parameter_groups
from pscl_hpc.training.schedule import lr_factor, set_lr

__all__ = ["Lars", "autocast", "build_optimiser", "lr_factor", "parameter_groups", "set_lr", "setup_device"]
