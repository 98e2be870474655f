"""How fine-tuning runs began and what they were made with: which of them may be averaged or compared."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pscl_hpc.errors import UserError
from pscl_hpc.models import MODEL_FILE, TRUNK_FILE, read_card
from pscl_hpc.results.runs import RunData

Settings = dict[str, Any]
SCRATCH = "from scratch"
CLASSIFIER = "pixel classifier"
"""Start of the runs that train no network."""
_NO_SETTINGS = (
    "kind",
    "run",
    "name",
    "references",
    "seed",
    "pretrained",
    "log",
    "runtime",
    "checkpoint",
    "cache",
)
"""Keys that do not separate runs: what is averaged over, and what changes no score."""
_SCORED = "scored archive"
_INFERENCE = "inference"
_MOST = 6
"""Differing settings that are all named."""
_TELLING = ("model.name", "semi_supervised", "schedule.steps", "features.name", "head.name")
"""Settings that are named where more differ."""
_DEPTH = 4


def starts(runs: Sequence[RunData]) -> dict[Path, str]:
    """How each evaluated run began, in words, by its folder.

    Two runs have the same words if and only if they began from the same weights. A pretraining that is among ``runs``
    is called by its method, another one by its folder. A classifier has its own words.
    """
    trunks = {run.path: _trunk(run, run.evaluation.pretrained) for run in runs if run.evaluation is not None}
    known = {run.path.resolve(): run for run in runs if run.kind == "pretrain"}
    places = list(dict.fromkeys(place for place in trunks.values() if place is not None))
    others = [place for place in places if place not in known]
    names: dict[Path, str] = {}
    for place in places:
        if place in known:
            name = f"pretrained by {known[place].method}"
            names[place] = name if name not in names.values() else f"{name} ({known[place].label})"
        else:
            names[place] = f"pretrained ({_short_name(place, others)})"
    classifiers = {run.path for run in runs if run.kind == "classifier"}
    found = {path: SCRATCH if place is None else names[place] for path, place in trunks.items()}
    for path in classifiers & found.keys():
        found[path] = CLASSIFIER if found[path] == SCRATCH else f"{CLASSIFIER}, {found[path]}"
    return found


def settings_of(run: RunData) -> Settings:
    """The settings of an evaluated run that decide its scores.

    An archive is given by its fingerprint where the run knows it, ``model`` by the saved network. A setting without
    effect is left out, such as ``encoder_lr_scale`` from random weights.
    """
    assert run.evaluation is not None
    tree = {key: value for key, value in run.config.items() if key not in _NO_SETTINGS}
    trained = str(run.record.get("archive") or run.locate(str(run.setting("data.archive"))).resolve())
    data = tree.get("data")
    tree["data"] = {**(data if isinstance(data, dict) else {}), "archive": trained}
    scored = run.evaluation.archive
    tree[_SCORED] = "" if scored == trained else scored
    tree[_INFERENCE] = run.evaluation.inference
    # A trunk brings its own model; what the configuration says of it is not used.
    tree.pop("model" if run.setting("pretrained") else "encoder_lr_scale", None)
    with contextlib.suppress(UserError):
        tree["model"] = read_card(run.path).model.model_dump(mode="json")
    return tree


def comparable(first: Settings, second: Settings) -> bool:
    """Whether runs agree in all settings that both have."""
    return all(repr(first[key]) == repr(second[key]) for key in first.keys() & second.keys())


def differences(found: Sequence[Settings], names: Sequence[str] = ()) -> list[str]:
    """For each of the settings, in words, the values that others among them do not share; often none.

    Args:
        found: The settings.
        names: A name for each of them, empty where it has none. It takes the place of many values if no other has it;
            otherwise only the most telling of many values are given, and the number of the others.
    """
    trees = [dict(_flat(settings)) for settings in found]
    values: dict[str, set[str]] = {}
    for tree in trees:
        for key, value in tree.items():
            values.setdefault(key, set()).add(repr(value))
    differing = [{key: value for key, value in tree.items() if len(values[key]) > 1} for tree in trees]
    taken = Counter(names)
    return [
        name if name and taken[name] == 1 and len(own) > _MOST else _phrase(own)
        for own, name in zip(differing, names or [""] * len(found), strict=True)
    ]


def _trunk(run: RunData, pretrained: str) -> Path | None:
    """The run folder, or else the file, of the weights that a run began with."""
    if not pretrained:
        return None
    place = run.locate(pretrained)
    return (place.parent if place.name in (TRUNK_FILE, MODEL_FILE) else place).resolve()


def _short_name(place: Path, places: Sequence[Path]) -> str:
    """The last parts of a path, as many as tell it from the others."""
    length = 1
    while any(other != place and other.parts[-length:] == place.parts[-length:] for other in places):
        length += 1
    return "/".join(place.parts[-length:])


def _flat(tree: Settings, above: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, Any]]:
    """Values by dotted key. An optional section also has a value itself: its name, or None."""
    for key, value in tree.items():
        name = f"{above}{key}"
        if not isinstance(value, dict) or not depth:
            yield name, value
            continue
        if name == "semi_supervised":
            yield name, value.get("name", True)
        yield from _flat(value, f"{name}.", depth - 1)


def _phrase(differing: Settings) -> str:
    """The values in words, or if there are many the first ones of ``_TELLING`` and the number of the others."""
    shown = list(differing)
    if len(shown) > _MOST:
        shown = [key for key in _TELLING if key in differing] or shown[:2]
    words = [_words(key, differing[key]) for key in shown]
    others = len(differing) - len(shown)
    return ", ".join(words) + (f" and {others} others" if others else "")


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
