"""Pretraining methods, one module each. :data:`_METHODS` is where a new one is registered."""

from pscl_hpc.config import (
    ByolConfig,
    CoreConfig,
    DenseClConfig,
    IdealConfig,
    MethodBase,
    MocoConfig,
    PretrainConfig,
    PsclClusteredConfig,
    PsclMocoConfig,
    PsclSimclrConfig,
    SimclrConfig,
)
from pscl_hpc.methods.base import Method, MethodOutput, PatchSample, Setting, Views
from pscl_hpc.methods.byol import Byol
from pscl_hpc.methods.core import Core
from pscl_hpc.methods.densecl import DenseCl
from pscl_hpc.methods.ideal import Ideal
from pscl_hpc.methods.moco import Moco
from pscl_hpc.methods.patches import patch_purity
from pscl_hpc.methods.pscl_clustered import PsclClustered
from pscl_hpc.methods.pscl_moco import PsclMoco
from pscl_hpc.methods.pscl_simclr import PsclSimclr
from pscl_hpc.methods.simclr import Simclr
from pscl_hpc.models import UNet

_METHODS: dict[type[MethodBase], type[Method]] = {
    PsclSimclrConfig: PsclSimclr,
    PsclMocoConfig: PsclMoco,
    PsclClusteredConfig: PsclClustered,
    MocoConfig: Moco,
    ByolConfig: Byol,
    DenseClConfig: DenseCl,
    SimclrConfig: Simclr,
    CoreConfig: Core,
    IdealConfig: Ideal,
}


def build_method(config: PretrainConfig, setting: Setting) -> Method:
    """The configured method on a fresh trunk."""
    return _METHODS[type(config.method)].build(UNet(config.model), config, setting)


_DISPLAY_NAMES = {"pscl-simclr": "PSCL-SimCLR", "simclr": "SimCLR"}


def display_name(method_name: str) -> str:
    """The name of a method in texts for people; an unknown name stays as it is."""
    return _DISPLAY_NAMES.get(method_name, method_name)


__all__ = [
    "Byol",
    "Core",
    "DenseCl",
    "Ideal",
    "Method",
    "MethodOutput",
    "Moco",
    "PatchSample",
    "PsclClustered",
    "PsclMoco",
    "PsclSimclr",
    "Setting",
    "Simclr",
    "Views",
    "build_method",
    "display_name",
    "patch_purity",
]
