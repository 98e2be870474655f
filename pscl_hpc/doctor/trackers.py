"""The optional packages to which a run sends its numbers beside metrics.jsonl."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator

from pscl_hpc.doctor.findings import Finding

TRACKERS = {"TensorBoard": "tensorboard", "Weights & Biases": "wandb", "MLflow": "mlflow"}
"""Name of a tracker -> its extra and key of ``log``."""
_PACKAGES = {"mlflow": ("mlflow-skinny", "mlflow")}


def tracker(key: str) -> Iterator[Finding]:
    """Whether the package of a tracker is installed."""
    for package in _PACKAGES.get(key, (key,)):
        try:
            yield Finding("ok", f"{importlib.metadata.version(package)}, used with log.{key}")
            return
        except importlib.metadata.PackageNotFoundError:
            continue
    yield Finding(
        "note",
        "not installed; metrics.jsonl is always written",
        f"pip install 'pscl-hpc[{key}]' to use log.{key}",
    )
