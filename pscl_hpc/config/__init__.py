"""Typed configuration: schema, loading, overrides."""

from pscl_hpc.config.loading import Config, load_config, resolve_config, to_yaml
from pscl_hpc.config.schema import (
    DataConfig,
    FinetuneConfig,
    ModelConfig,
    OptimiserConfig,
    PretrainConfig,
    RuntimeConfig,
    ScheduleConfig,
)

__all__ = [
    "Config",
    "DataConfig",
    "FinetuneConfig",
    "ModelConfig",
    "OptimiserConfig",
    "PretrainConfig",
    "RuntimeConfig",
    "ScheduleConfig",
    "load_config",
    "resolve_config",
    "to_yaml",
]
