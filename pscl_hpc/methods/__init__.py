"""Pretraining methods: one module each, which registers its settings and class (docs/methods.md)."""

from pscl_hpc.methods.base import (
    METHODS,
    AnyMethod,
    Method,
    MethodConfig,
    MethodOutput,
    PatchSample,
    ReferenceConfig,
    ReferencedMethodConfig,
    Setting,
    Views,
    build_method,
    display_name,
)
from pscl_hpc.methods.common.patches import patch_purity

__all__ = [
    "METHODS",
    "AnyMethod",
    "Method",
    "MethodConfig",
    "MethodOutput",
    "PatchSample",
    "ReferenceConfig",
    "ReferencedMethodConfig",
    "Setting",
    "Views",
    "build_method",
    "display_name",
    "patch_purity",
]
