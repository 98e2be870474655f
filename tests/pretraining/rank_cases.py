"""What :mod:`tests.pretraining.test_ranks` trains by one and by two ranks: every registered method with small settings,
and the other ways of training.

Values replace keys of :func:`tests.helpers.small_config`. A method that needs references takes two, one for each rank.
"""

from __future__ import annotations

from typing import Any

from pscl_hpc.methods import METHODS

_SMALL = {
    "clusters": 3,
    "corruption": {"block": [6, 12]},
    "hidden": 12,
    "patches_per_image": 100,
    "projection": 8,
    "queue_steps": 2,
    "reference": {"ids": ["alloy/0", "alloy/1"], "per_batch": 2},
    "templates_per_class": 2,
}
"""Values for those keys of ``method`` that a method has."""
_ACCUMULATION = {"batch_size": 8, "accumulate": 2}
EXACT = {
    "model": {"widths": [4, 8, 8, 16], "norm": "group"},
    "batch_size": 8,
    "accumulate": "exact",
    "part_size": 2,
}
"""A batch in four parts whose loss is that of the whole batch."""


def _method(name: str, **changes: Any) -> dict[str, Any]:
    keys = METHODS.config(name).model_fields
    return {"name": name, **{key: value for key, value in _SMALL.items() if key in keys}, **changes}


def exact_method(name: str, **changes: Any) -> dict[str, Any]:
    """The method with a reference for each of the four parts of :data:`EXACT`."""
    found = _method(name, **changes)
    if "reference" in found:
        found["reference"] = {**found["reference"], "per_batch": 4}
    return found


CASES: dict[str, dict[str, Any]] = (
    {name: {"method": _method(name)} for name in METHODS.names}
    | {
        "every intensity change": {
            "method": _method("simclr"),
            "views": {"size": [32, 32], "jitter": {"gamma": 0.3, "noise": 0.1, "blur": 1.0}},
        },
        "accumulation": {"method": _method("pscl-simclr"), **_ACCUMULATION},
        "clipping": {
            "method": _method("pscl-simclr"),
            "optimiser": {"name": "adamw", "weight_decay": 0.1, "clip_norm": 0.5},
        },
        "recomputed activations": {
            "method": _method("pscl-simclr", texture=0.5),
            "runtime": {"threads": 1, "activation_checkpointing": True},
        },
        "pscl-moco, texture": {"method": _method("pscl-moco", texture=0.5)},
        "pscl-moco, accumulation": {"method": _method("pscl-moco", queue_steps=1), **_ACCUMULATION},
        "core, accumulation": {"method": _method("core"), **_ACCUMULATION},
        "ideal, few patches": {"method": _method("ideal", patches_per_image=8, global_weight=0.5)},
        "ideal, feature": {"method": _method("ideal", correspondence="feature")},
        "pscl-clustered, accumulation": {"method": _method("pscl-clustered"), **_ACCUMULATION},
    }
    | {f"{name}, exact": {"method": exact_method(name), **EXACT} for name in METHODS.names}
)
