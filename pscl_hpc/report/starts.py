"""How fine-tuning runs began: from random weights, or from which pretraining."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pscl_hpc.models import MODEL_FILE, TRUNK_FILE
from pscl_hpc.report.collect import RunData

SCRATCH = "from scratch"


def starts(runs: Sequence[RunData]) -> dict[Path, str]:
    """How each evaluated run began, in words, by its folder.

    What tells two pretrainings apart is where they lie, from the run's own working directory: runs have the same words
    if, and only if, they began with the same one. Those of a pretraining on the page are its method's.
    """
    trunks: dict[Path, Path | None] = {
        run.path: _trunk(run, run.evaluation.pretrained) for run in runs if run.evaluation is not None
    }
    known = {run.path.resolve(): run for run in runs if run.kind == "pretrain"}
    names: dict[Path, str] = {}
    places = list(dict.fromkeys(place for place in trunks.values() if place is not None))
    strangers = _short_names([place for place in places if place not in known])
    for place in places:
        if place not in known:
            names[place] = f"pretrained ({strangers[place]})"
            continue
        name = f"pretrained by {known[place].method}"
        names[place] = name if name not in names.values() else f"{name} ({known[place].label})"
    return {path: SCRATCH if place is None else names[place] for path, place in trunks.items()}


def _trunk(run: RunData, pretrained: str) -> Path | None:
    """The folder of the weights that a run began with; the file where they have another name than a run gives them."""
    if not pretrained:
        return None
    place = run.locate(pretrained)
    return (place.parent if place.name in (TRUNK_FILE, MODEL_FILE) else place).resolve()


def _short_names(places: Sequence[Path]) -> dict[Path, str]:
    """The last parts of each path, as many as tell it from the others."""
    names = {}
    for place in places:
        length = 1
        while any(other != place and other.parts[-length:] == place.parts[-length:] for other in places):
            length += 1
        names[place] = "/".join(place.parts[-length:])
    return names
