"""What of a configuration decides measured rates."""

from __future__ import annotations

from typing import Any

from pscl_hpc.planning.rates import Rates
from pscl_hpc.pretraining.config import PretrainConfig

_FREE = ("method.reference.", "views.jitter.")
"""Sections that change no measured number; how many references there are is asked for apart."""


def measured_keys(config: PretrainConfig) -> dict[str, Any]:
    """Keys of the configuration, dotted, and their values as JSON has them: other values, other rates."""
    tree = config.model_dump(mode="json")
    runtime = {key: tree["runtime"][key] for key in ("precision", "activation_checkpointing", "kernels")}
    sections = {key: tree[key] for key in ("method", "model", "views")}
    flat = _flat({**sections, "runtime": runtime, "optimiser": {"name": tree["optimiser"]["name"]}})
    return {key: value for key, value in flat.items() if not key.startswith(_FREE)}


def difference(rates: Rates, config: PretrainConfig) -> str:
    """The first key in which rates were measured with another value than the configuration has, in words, or empty."""
    here, there = measured_keys(config), rates.keys
    for key in (*here, *there):
        if here.get(key) != there.get(key):
            return f"{key} {there.get(key)}, not {here.get(key)}"
    return ""


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
