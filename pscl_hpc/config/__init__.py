"""Typed configuration: schema, loading, overrides."""

from pscl_hpc.config.loading import Config, load_config, resolve_config, to_yaml
from pscl_hpc.config.methods import (
    MethodBase,
    MomentumConfig,
    PatchConfig,
    PsclSimclrConfig,
    ReferenceConfig,
    ReferencedMethod,
    SimclrConfig,
)
from pscl_hpc.config.schema import (
    CheckpointConfig,
    DataConfig,
    FinetuneConfig,
    FinetuneLossConfig,
    JitterConfig,
    LogConfig,
    ModelConfig,
    OptimiserConfig,
    PretrainConfig,
    RuntimeConfig,
    ScheduleConfig,
    ViewConfig,
)

__all__ = [
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "FinetuneConfig",
    "FinetuneLossConfig",
    "JitterConfig",
    "LogConfig",
    "MethodBase",
    "ModelConfig",
    "MomentumConfig",
    "OptimiserConfig",
    "PatchConfig",
    "PretrainConfig",
    "PsclSimclrConfig",
    "ReferenceConfig",
    "ReferencedMethod",
    "RuntimeConfig",
    "ScheduleConfig",
    "SimclrConfig",
    "ViewConfig",
    "load_config",
    "resolve_config",
    "to_yaml",
]
