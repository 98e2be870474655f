"""What fine-tuning runs were made with, besides their start, reference and seed: which of them may be compared."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pscl_hpc.errors import UserError
from pscl_hpc.models import read_card
from pscl_hpc.report.collect import RunData
from pscl_hpc.segmentation.config import FinetuneConfig

Settings = dict[str, Any]
_ASIDE = ("kind", "run", "name", "references", "seed", "pretrained", "log", "runtime", "checkpoint")
"""Keys that are no settings: what tables repeat over, where runs lie, how fast they are and what they keep."""
_MOST_NAMED = 3
"""Settings that a label names."""
_SCORED = "scored archive"
_INFERENCE = "inference"
_DEPTH = 4


def settings_of(run: RunData) -> Settings:
    """The sections of an evaluated run's configuration that decide its scores.

    Archives stand there by their content where the run knows it. ``model`` is that of the network itself, and is
    missing where a trunk brought one that cannot be read any more; so is what a start does not use.
    """
    tree = {key: value for key, value in _complete(run.config).items() if key not in _ASIDE}
    trained = str(run.record.get("archive") or run.locate(str(run.setting("data.archive"))).resolve())
    data = tree.get("data")
    tree["data"] = {**(data if isinstance(data, dict) else {}), "archive": trained}
    scored = run.evaluation.archive if run.evaluation is not None else ""
    tree[_SCORED] = "" if scored == trained else scored
    tree[_INFERENCE] = run.evaluation.inference if run.evaluation is not None else ""
    tree.pop("model" if run.setting("pretrained") else "encoder_lr_scale", None)
    with contextlib.suppress(UserError):
        tree["model"] = read_card(run.path).model.model_dump(mode="json")
    return tree


def identity(settings: Any) -> str:
    """The same text for the same settings."""
    return repr(settings)


def comparable(first: Settings, second: Settings) -> bool:
    """Whether runs agree in all settings that both have."""
    return all(identity(first[key]) == identity(second[key]) for key in first.keys() & second.keys())


def differences(found: Sequence[Settings]) -> list[str]:
    """For each of the settings, in a few words, what others among them have differently; often nothing."""
    trees = [dict(_flat(settings)) for settings in found]
    values: dict[str, set[str]] = {}
    for tree in trees:
        for key, value in tree.items():
            values.setdefault(key, set()).add(identity(value))
    labels = []
    for tree in trees:
        named = [_words(key, value) for key, value in tree.items() if len(values[key]) > 1]
        more = len(named) - _MOST_NAMED
        labels.append(", ".join(named[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else ""))
    return labels


def _complete(config: dict[str, Any]) -> dict[str, Any]:
    """With the defaults of keys that the run's version did not know; one that does not fit stays as it is."""
    try:
        return FinetuneConfig.model_validate(config).model_dump(mode="json")
    except ValidationError:
        return config


def _flat(tree: Settings, above: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, Any]]:
    """Values by dotted key. A section that may be absent also has a value itself: its name, or nothing."""
    for key, value in tree.items():
        name = f"{above}{key}"
        if not isinstance(value, dict) or not depth:
            yield name, value
            continue
        if name == "semi_supervised":
            yield name, value.get("name", True)
        yield from _flat(value, f"{name}.", depth - 1)


def _words(key: str, value: Any) -> str:
    if key == "square":
        return f"square of {value} pixels" if value else "whole annotation"
    if key == "semi_supervised":
        return "semi-supervised" if value else "supervised"
    if key == "data.archive":
        return f"trained on {_archive(value)}"
    if key == _INFERENCE:
        return f"scored with {value}" if value else "scored plainly"
    if key == _SCORED:
        return f"scored on {_archive(value)}" if value else "scored on the archive of the training"
    return f"{key} {value}"


def _archive(value: str) -> str:
    return Path(value).name if "/" in value else f"archive {value[:8]}"
