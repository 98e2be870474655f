"""One section per pretraining method, told apart by ``name``. A new method is added to :data:`MethodConfig`."""

from typing import Annotated, get_args

from pydantic import Field

from pscl_hpc.config.methods.base import MethodBase, ReferenceConfig, ReferencedMethod
from pscl_hpc.config.methods.core import CoreConfig, CorruptionConfig
from pscl_hpc.config.methods.dense import DenseClConfig
from pscl_hpc.config.methods.ideal import IdealConfig
from pscl_hpc.config.methods.image_level import ByolConfig, MocoConfig, SimclrConfig
from pscl_hpc.config.methods.momentum import MomentumConfig
from pscl_hpc.config.methods.pscl import (
    AnnotatedPatchConfig,
    PatchConfig,
    PsclClusteredConfig,
    PsclMocoConfig,
    PsclSimclrConfig,
)

AnyMethod = (
    PsclSimclrConfig
    | PsclClusteredConfig
    | PsclMocoConfig
    | SimclrConfig
    | CoreConfig
    | IdealConfig
    | MocoConfig
    | ByolConfig
    | DenseClConfig
)
MethodConfig = Annotated[AnyMethod, Field(discriminator="name")]
METHODS: tuple[str, ...] = tuple(section.model_fields["name"].default for section in get_args(AnyMethod))
"""The names that ``method.name`` can have."""

__all__ = [
    "METHODS",
    "AnnotatedPatchConfig",
    "ByolConfig",
    "CoreConfig",
    "CorruptionConfig",
    "DenseClConfig",
    "IdealConfig",
    "MethodBase",
    "MethodConfig",
    "MocoConfig",
    "MomentumConfig",
    "PatchConfig",
    "PsclClusteredConfig",
    "PsclMocoConfig",
    "PsclSimclrConfig",
    "ReferenceConfig",
    "ReferencedMethod",
    "SimclrConfig",
]
