"""What makes two runs the same run: a hash of everything that decides the numbers.

In the key are the resolved configuration (every default written out), the fingerprint of the archive (pixels, masks,
ids, splits), of a fine-tuning the key of its pretraining, and the version of this package. Not in the key are the names
of runs and folders, the archive's path, what is logged, and ``runtime`` but for ``precision``: they say where and how
fast, not what. The commit is not in the key either, or a corrected comment would repeat a study: it is listed with the
results, and a change of numbers is a new version.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pscl_hpc import __version__
from pscl_hpc.config import RunConfig

_ELSEWHERE = ("run", "name", "log", "runtime")


def run_key(config: RunConfig, fingerprint: str, pretraining: str = "") -> str:
    """The key of a run, 64 hexadecimal digits.

    Args:
        config: Its configuration.
        fingerprint: Of the archive.
        pretraining: Of a fine-tuning the key of the run that ``pretrained`` names; empty from random weights.
    """
    tree: dict[str, Any] = config.model_dump(mode="json")
    precision = tree["runtime"]["precision"]
    tree = {key: value for key, value in tree.items() if key not in _ELSEWHERE}
    tree["precision"] = precision
    tree["data"] = {key: value for key, value in tree["data"].items() if key != "archive"}
    if "pretrained" in tree:
        tree["pretrained"] = pretraining
    content = {"config": tree, "archive": fingerprint, "version": __version__}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
