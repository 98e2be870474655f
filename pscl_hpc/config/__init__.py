"""Typed configuration: the sections that tasks share, registries of alternatives, YAML files and overrides."""

from pscl_hpc.config.loading import (
    apply_overrides,
    dotted,
    load_cluster,
    load_config,
    merge_trees,
    parse_yaml,
    read_tree,
    resolve_config,
    schema_of,
    to_yaml,
)
from pscl_hpc.config.problems import first_problem
from pscl_hpc.config.registry import NamedConfig, Registry
from pscl_hpc.config.sections import (
    CheckpointConfig,
    DataConfig,
    JitterConfig,
    LogConfig,
    OptimiserConfig,
    RunConfig,
    RuntimeConfig,
    ScheduleConfig,
    TrainingConfig,
    ViewConfig,
)
from pscl_hpc.config.strict import Count, Fraction, NonNegative, Positive, Size, Strict, check_folder

__all__ = [
    "CheckpointConfig",
    "Count",
    "DataConfig",
    "Fraction",
    "JitterConfig",
    "LogConfig",
    "NamedConfig",
    "NonNegative",
    "OptimiserConfig",
    "Positive",
    "Registry",
    "RunConfig",
    "RuntimeConfig",
    "ScheduleConfig",
    "Size",
    "Strict",
    "TrainingConfig",
    "ViewConfig",
    "apply_overrides",
    "check_folder",
    "dotted",
    "first_problem",
    "load_cluster",
    "load_config",
    "merge_trees",
    "parse_yaml",
    "read_tree",
    "resolve_config",
    "schema_of",
    "to_yaml",
]
