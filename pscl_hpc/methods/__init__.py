"""Pretraining methods, one module each. :func:`build_method` is where a new one is registered."""

from pscl_hpc.archive import Collection
from pscl_hpc.config import PretrainConfig, PsclSimclrConfig
from pscl_hpc.methods.base import CellSample, Method, MethodOutput, Views
from pscl_hpc.methods.pscl_simclr import PsclSimclr, cell_purity
from pscl_hpc.methods.simclr import Simclr
from pscl_hpc.models import UNet


def build_method(config: PretrainConfig, annotated: Collection | None) -> Method:
    """The configured method on a fresh trunk.

    Args:
        config: Run configuration.
        annotated: The collection of the reference images; None for methods without references.
    """
    trunk = UNet(config.model)
    method = config.method
    if isinstance(method, PsclSimclrConfig):
        if annotated is None:
            raise ValueError("pscl-simclr needs the collection of its references")
        return PsclSimclr(
            trunk,
            method,
            classes=len(annotated.classes),
            ignored=annotated.ignore_classes,
            backend=config.runtime.kernels,
        )
    return Simclr(trunk, method, backend=config.runtime.kernels)


__all__ = [
    "CellSample",
    "Method",
    "MethodOutput",
    "PsclSimclr",
    "Simclr",
    "Views",
    "build_method",
    "cell_purity",
]
