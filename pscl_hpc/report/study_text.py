"""What has to be said with the figures of a study."""

from __future__ import annotations

from collections.abc import Sequence

from pscl_hpc.report.study_results import PoolPart, StudyResults

_TEMPLATES = {
    "reference": "Where a pretraining uses annotation, it is that of the fine-tuning: one trunk for each.",
    "dataset": "Where a pretraining uses annotation, it is that of one image per data set: a second annotated image "
    "for fine-tunings on another one.",
    "study": "Where a pretraining uses annotation, it is that of one image for all data sets: a second annotated "
    "image for fine-tunings on another one.",
}

PURITY = (
    "Share of the sampled cells of unlabelled images that lie on the class of their template, where a mask is known; "
    "of clusters, on the class that is most frequent in their cluster. Means over the first and over the last quarter "
    "of the steps. Templates are the same number for each class, so that chance is one over the number of classes that "
    "the annotated image shows. Where purity is near chance, the patch loss parts cells of random classes."
)
"""What the table of purities means."""


def notes(results: StudyResults) -> list[str]:
    """What the figures are and what they were made from, one sentence or two each."""
    lines = [
        f"{results.scored} of {results.runs} runs are scored; seeds {', '.join(map(str, results.seeds))}.",
        "Dice is pooled over the images of a split; mean Dice is that of the foreground classes; \u00b1 is the sample "
        "standard deviation over runs. Validation images choose the checkpoint.",
    ]
    pools: dict[str, list[str]] = {}
    for method, parts in results.pools.items():
        pools.setdefault(pool_text(parts), []).append(method)
    for text, methods in pools.items():
        lines.append(
            f"Pretraining pool of {', '.join(methods)}: {text}; no test or validation image, checked by split and by "
            "pixels."
        )
    if results.pools and results.pretrain_per in _TEMPLATES:
        lines.append(_TEMPLATES[results.pretrain_per])
    if results.comparisons:
        lines.append(
            "A pair is the same annotated images with both methods, averaged over seeds. Intervals are Student's t "
            "over pairs, that of the error removed for a ratio of means; there is none where pairs are too few or have "
            "annotated images in common."
        )
    if len(results.commits) > 1:
        named = ", ".join(commit[:7] or "unknown" for commit in results.commits)
        lines.append(f"The runs are of {len(results.commits)} commits: {named}.")
    return lines


def pool_text(parts: Sequence[PoolPart]) -> str:
    """The images of a pool in words."""
    named = [f"{part.dataset} {part.images} ({part.split or 'no split'})" for part in parts]
    return f"{sum(part.images for part in parts)} images, {', '.join(named)}"
