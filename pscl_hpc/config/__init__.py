"""Typed configuration: schema, loading, overrides."""

from pscl_hpc.config.loading import Config, load_config, resolve_config, to_yaml
from pscl_hpc.config.methods import (
    CoreConfig,
    CorruptionConfig,
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
from pscl_hpc.config.study import StudyConfig, load_study

__all__ = [
    "CheckpointConfig",
    "Config",
    "CoreConfig",
    "CorruptionConfig",
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
    "StudyConfig",
    "ViewConfig",
    "load_config",
    "load_study",
    "resolve_config",
    "to_yaml",
]
