"""What has to be said with the figures of a study."""

from __future__ import annotations

from pscl_hpc.report.study_results import Compared, StudyResults, Unit

_TEMPLATES = {
    "reference": "Where a pretraining uses annotation, it is that of the fine-tuning: one trunk for each.",
    "dataset": "Where a pretraining uses annotation, it is that of one image per data set: a second annotated image "
    "for fine-tunings on another one.",
    "study": "Where a pretraining uses annotation, it is that of one image for all data sets: a second annotated "
    "image for fine-tunings on another one.",
}

PURITY = (
    "Share of the sampled patches of unlabelled images that lie on the class of their template, where a mask is known; "
    "of clusters, on the class that is most frequent in their cluster. Means over the first and over the last quarter "
    "of the steps. Templates are the same number for each class, so that chance is one over the number of classes that "
    "the annotated image shows. Where purity is near chance, the patch loss parts patches of random classes."
)
"""What the table of purities means."""


_IMAGES = "A pair is the same annotated images with both methods, averaged over seeds"
_SEEDS = "one seed with both methods, which says nothing about other annotated images"
UNITS: dict[Unit, str] = {"images": "annotated images", "seeds": "seeds", "pairs": "pairs"}
"""The pairs of a comparison in words."""


def notes(results: StudyResults) -> list[str]:
    """What the figures are and what they were made from, one sentence or two each."""
    lines = [
        f"{results.scored} of {results.runs} runs are scored; seeds {', '.join(map(str, results.seeds))}.",
        "Dice is pooled over the images of a split; mean Dice is that of the foreground classes; \u00b1 is the sample "
        "standard deviation over runs. Validation images choose the checkpoint.",
    ]
    pools: dict[str, list[str]] = {}
    for method in results.pools:
        pools.setdefault(pool_text(results, method), []).append(method)
    for text, methods in pools.items():
        lines.append(
            f"Pretraining pool of {', '.join(methods)}: {text}; no test or validation image, checked by split and by "
            "pixels."
        )
    if results.pools and results.pretrain_per in _TEMPLATES:
        lines.append(_TEMPLATES[results.pretrain_per])
    if results.comparisons:
        lines.append(
            f"{pair_text(results)} Intervals are Student's t over pairs, that of the error removed for a ratio of "
            "means; there is none where pairs are too few or have annotated images in common."
        )
    if len(results.commits) > 1:
        named = ", ".join(commit[:7] or "unknown" for commit in results.commits)
        lines.append(f"The runs are of {len(results.commits)} commits: {named}.")
    return lines


def pair_text(results: StudyResults) -> str:
    """What the pairs of the comparisons are."""
    kinds = {line.unit for line in results.comparisons}
    if kinds == {"images"}:
        return f"{_IMAGES}."
    if kinds == {"seeds"}:
        return f"A pair is {_SEEDS}."
    return f"{_IMAGES}; where a data set has a single set of annotated images, it is {_SEEDS}."


def wins_text(line: Compared) -> str:
    """In how many pairs a method is better, for a table: annotated images are what one expects there."""
    return f"{line.wins} of {line.units}" + (" seeds" if line.unit == "seeds" else "")


def pool_text(results: StudyResults, method: str) -> str:
    """The images of a method's pool in words."""
    parts = results.pools[method]
    named = [f"{part.dataset} {part.images} ({part.split or 'no split'})" for part in parts]
    less = ", less the annotated images of each pretraining" if method in results.pools_without_own else ""
    return f"{sum(part.images for part in parts)} images, {', '.join(named)}{less}"
