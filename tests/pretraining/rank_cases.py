"""What :mod:`tests.pretraining.test_ranks` trains by one and by two ranks: one entry per method and way of training.

Values replace keys of :func:`tests.helpers.small_config`. A method that needs references takes two, one for each rank.
"""

from __future__ import annotations

from typing import Any

_REFERENCE = {"ids": ["alloy/0", "alloy/1"], "per_batch": 2}
_PSCL = {"name": "pscl-simclr", "reference": _REFERENCE, "templates_per_class": 2}
_CORE = {"name": "core", "corruption": {"block": [6, 12]}}
_CLUSTERED = {"name": "pscl-clustered", "clusters": 3, "templates_per_class": 2, "patches_per_image": 100}

CASES: dict[str, dict[str, Any]] = {
    "simclr": {"method": {"name": "simclr"}},
    "pscl-simclr": {"method": _PSCL},
    "every intensity change": {
        "method": {"name": "simclr"},
        "views": {"size": [32, 32], "jitter": {"gamma": 0.3, "noise": 0.1, "blur": 1.0}},
    },
    "accumulation": {"method": _PSCL, "batch_size": 8, "accumulate": 2},
    "clipping": {"method": _PSCL, "optimiser": {"name": "adamw", "weight_decay": 0.1, "clip_norm": 0.5}},
    "recomputed activations": {
        "method": _PSCL | {"texture": 0.5},
        "runtime": {"threads": 1, "activation_checkpointing": True},
    },
    "moco": {"method": {"name": "moco", "queue_steps": 2}},
    "byol": {"method": {"name": "byol", "hidden": 12, "projection": 8}},
    "densecl": {"method": {"name": "densecl", "queue_steps": 2}},
    "pscl-moco": {"method": _PSCL | {"name": "pscl-moco", "queue_steps": 2, "texture": 0.5}},
    "pscl-moco, accumulation": {
        "method": _PSCL | {"name": "pscl-moco", "queue_steps": 1},
        "batch_size": 8,
        "accumulate": 2,
    },
    "core": {"method": _CORE},
    "core, accumulation": {"method": _CORE, "batch_size": 8, "accumulate": 2},
    "ideal": {"method": {"name": "ideal", "patches_per_image": 8, "projection": 8, "global_weight": 0.5}},
    "ideal, feature": {"method": {"name": "ideal", "correspondence": "feature", "projection": 8}},
    "pscl-clustered": {"method": _CLUSTERED},
    "pscl-clustered, accumulation": {"method": _CLUSTERED, "batch_size": 8, "accumulate": 2},
}
