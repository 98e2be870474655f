"""Pretraining methods. Each is one module that registers its settings and its class (docs/methods.md)."""

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
from pscl_hpc.methods.embedding import Embedding, join

__all__ = [
    "METHODS",
    "AnyMethod",
    "Embedding",
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
    "join",
    "patch_purity",
]
