"""The key of a run: a hash of everything that decides its numbers. Runs with the same key are the same run.

The key includes the resolved configuration (all defaults written out), the fingerprint of the archive (pixels, masks,
ids, splits), for a fine-tuning or a classifier the key of its pretraining, and the version of this package. It does not
include names, folders, the path of the archive, ``log``, ``cache``, and ``runtime`` except ``precision``: these change no
number. Nor does it include the commit, because an edited comment would then repeat a study; the results list the commits,
and a change of numbers requires a new version.

A key that is added to configurations therefore changes the keys of all runs. ``stored`` finds the runs from before: the
name of their folder ends in the key that they began with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pscl_hpc import __version__
from pscl_hpc.config import RunConfig

_EXCLUDED = ("run", "name", "log", "runtime", "cache")


def run_key(config: RunConfig, fingerprint: str, pretraining: str = "") -> str:
    """The key of a run: 64 hexadecimal digits.

    Args:
        config: Its configuration.
        fingerprint: Of the archive.
        pretraining: For a fine-tuning or a classifier the key of the run named by ``pretrained``; empty without one.
    """
    return written_key(config.model_dump(mode="json"), fingerprint, pretraining)


def written_key(written: Mapping[str, Any], fingerprint: str, pretraining: str = "") -> str:
    """The key of a run when its ``config.yaml`` was written: without the keys that configurations have had since.

    Args:
        written: The content of the file.
        fingerprint: Of the archive.
        pretraining: As for :func:`run_key`; its key of that time.
    """
    tree = {key: value for key, value in written.items() if key not in _EXCLUDED}
    tree["precision"] = written.get("runtime", {}).get("precision")
    tree["data"] = {key: value for key, value in written["data"].items() if key != "archive"}
    if written.get("kind") != "pretrain":
        tree["pretrained"] = pretraining
    content = {"config": tree, "archive": fingerprint, "version": __version__}
    # An edited file may hold values that JSON does not have.
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
