"""The key of a run: a hash of everything that decides its numbers. Runs with the same key are the same run.

The key includes the resolved configuration (all defaults written out), the fingerprint of the archive (pixels, masks,
ids, splits), for a fine-tuning the key of its pretraining, and the version of this package. It does not include names,
folders, the path of the archive, ``log``, ``cache``, and ``runtime`` except ``precision``: these change no number. Nor does
it include the commit, because an edited comment would then repeat a study; the results list the commits, and a change of
numbers requires a new version.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pscl_hpc import __version__
from pscl_hpc.config import RunConfig

_EXCLUDED = ("run", "name", "log", "runtime", "cache")


def run_key(config: RunConfig, fingerprint: str, pretraining: str = "") -> str:
    """The key of a run: 64 hexadecimal digits.

    Args:
        config: Its configuration.
        fingerprint: Of the archive.
        pretraining: For a fine-tuning the key of the run named by ``pretrained``; empty from random weights.
    """
    tree: dict[str, Any] = config.model_dump(mode="json")
    precision = tree["runtime"]["precision"]
    tree = {key: value for key, value in tree.items() if key not in _EXCLUDED}
    tree["precision"] = precision
    tree["data"] = {key: value for key, value in tree["data"].items() if key != "archive"}
    if tree["kind"] == "finetune":
        tree["pretrained"] = pretraining
    content = {"config": tree, "archive": fingerprint, "version": __version__}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
