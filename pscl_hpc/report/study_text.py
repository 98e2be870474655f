"""The results of a study in words and tables, for ``table.md`` and the page."""

from __future__ import annotations

from collections.abc import Sequence

from pscl_hpc.report.curves import scale_name
from pscl_hpc.report.table import Table
from pscl_hpc.results.statistics import Estimate, Spread
from pscl_hpc.results.study import Compared, Place, StudyResults, Unit, Worst, pool_text

TABLE_FILE = "table.md"
_TEMPLATES = {
    "reference": "Where a pretraining uses annotation, it is that of the fine-tuning: one trunk for each.",
    "dataset": "Where a pretraining uses annotation, it is that of one image per data set: a second annotated image "
    "for fine-tunings on another one.",
    "study": "Where a pretraining uses annotation, it is that of one image for all data sets: a second annotated "
    "image for fine-tunings on another one.",
}
_IMAGES = "A pair is the same annotated images with both methods, averaged over seeds"
_SEEDS = "one seed with both methods, which says nothing about other annotated images"
_UNITS: dict[Unit, str] = {"images": "annotated images", "seeds": "seeds", "pairs": "pairs"}

PURITY = (
    "Share of the sampled patches of unlabelled images that are on the class of their template, where a mask is known; "
    "for clusters, on the class that is most frequent in the cluster. Means over the first and the last quarter of the "
    "steps. Every class has the same number of templates, so chance is one over the number of classes in the annotated "
    "image. Where purity is near chance, the patch loss separates random patches."
)
"""The meaning of the table of purities."""
FRACTION_ERROR = "error of the phase fraction, %"


def markdown(results: StudyResults) -> str:
    """The content of ``table.md``."""
    parts = [f"# {results.study}", "\n".join(f"- {note}" for note in notes(results))]
    for place in results.places:
        budget = f", budget {place[2]}" if len(results.budgets) > 1 else ""
        parts.append(f"## {place[0]}, {place[1]}{budget}\n\n{score_table(results, place).markdown()}")
    for baseline in results.baselines:
        lines = [line for line in results.comparisons if line.baseline == baseline]
        parts.append(f"## Against {baseline}\n\n{comparison_table(results, lines).markdown()}")
    if results.sampling:
        parts.append(f"## Purity of sampled patches\n\n{PURITY}\n\n{sampling_table(results).markdown()}")
    if results.failed:
        parts.append("## Failed\n\n" + "\n".join(f"- {item.job}: {item.reason}" for item in results.failed))
    return "\n\n".join(parts) + "\n"


def score_table(results: StudyResults, place: Place) -> Table:
    """The methods of one table of scores."""
    lines = [line for line in results.table if line.place == place]
    classes = tuple(dict.fromkeys(name for line in lines for name in line.dice))
    errors = any(line.fraction_error for line in lines)
    rows = [
        (
            line.method,
            str(line.runs),
            spread_text(line.mean_dice),
            _worst(line.worst),
            spread_text(line.validation_dice),
            *(spread_text(line.dice.get(name)) for name in classes),
            spread_text(line.pixel_accuracy),
            *([points_text(line.fraction_error)] if errors else []),
        )
        for line in lines
    ]
    head = ("method", "runs", "mean Dice", "worst annotated image", "validation Dice", *classes, "accuracy")
    head += (FRACTION_ERROR,) if errors else ()
    return Table(head, tuple(rows), tuple(line.mean_dice.mean if line.mean_dice else 0.0 for line in lines))


def comparison_table(results: StudyResults, lines: Sequence[Compared]) -> Table:
    """Pairs with one baseline: gain and share of the error removed, with intervals."""
    several = len(results.budgets) > 1
    interval = f"{100 * results.confidence:.0f}% interval"
    rows = [
        (
            line.method,
            f"{line.dataset} {line.split}" if line.dataset else "all headline scores",
            *([str(line.budget)] if several else []),
            f"{line.wins} of {line.units}" + (" seeds" if line.unit == "seeds" else ""),
            *_estimate(line.gain, percent=False),
            *_estimate(line.error_removed, percent=True),
            f"{line.worst_gain:+.3f}",
        )
        for line in lines
    ]
    head = ("method", "scores", *(["budget"] if several else []), "better in", "gain in mean Dice", interval)
    return Table((*head, "Dice error removed", interval, "gain of the worst"), tuple(rows))


def sampling_table(results: StudyResults) -> Table:
    """Purity of the sampled patches of every pretraining, at the start and at the end.

    The last scale of every decoder is the full resolution; a decoder with fewer scales lacks the coarse ones.
    """
    scales = max(len(found.last) for found in results.sampling)
    rows = [
        (
            found.method,
            ", ".join(found.references) or "clusters",
            *["-"] * (scales - len(found.last)),
            *(f"{_purity(a)} → {_purity(b)}" for a, b in zip(found.first, found.last, strict=True)),
        )
        for found in results.sampling
    ]
    names = (scale_name(index, scales) for index in range(scales))
    return Table(("method", "templates from", *names), tuple(rows))


def notes(results: StudyResults) -> list[str]:
    """How the numbers were made, one or two sentences each."""
    lines = [
        f"{results.scored} of {results.runs} runs are scored; seeds {', '.join(map(str, results.seeds))}.",
        "Dice is pooled over the images of a split; mean Dice is the mean over the foreground classes; ± is the sample "
        "standard deviation over runs. Validation images choose the checkpoint.",
    ]
    if any(line.fraction_error for line in results.table):
        lines.append(
            "The error of the phase fraction is the difference between the predicted fraction of a class in an image and "
            "that in its mask, in percentage points of the area, without its sign: the mean over test images and "
            "foreground classes."
        )
    same: dict[str, list[str]] = {}
    for method, text in pools(results).items():
        same.setdefault(text, []).append(method)
    lines += [
        f"Pretraining pool of {', '.join(methods)}: {text}; no test or validation image, checked by split and by pixels."
        for text, methods in same.items()
    ]
    if results.pools and results.pretrain_per in _TEMPLATES:
        lines.append(_TEMPLATES[results.pretrain_per])
    if results.comparisons:
        lines.append(
            f"{pair_text(results)} Intervals are Student's t over pairs, that of the error removed for a ratio of "
            "means; there is none where pairs are too few or have annotated images in common."
        )
    if len(results.commits) > 1:
        named = ", ".join(commit[:7] or "unknown" for commit in results.commits)
        lines.append(f"The runs were made with {len(results.commits)} commits: {named}.")
    return lines


def pair_text(results: StudyResults) -> str:
    """What a pair of the comparisons is."""
    kinds = {line.unit for line in results.comparisons}
    if kinds == {"images"}:
        return f"{_IMAGES}."
    if kinds == {"seeds"}:
        return f"A pair is {_SEEDS}."
    return f"{_IMAGES}; where a data set has a single set of annotated images, it is {_SEEDS}."


def pools(results: StudyResults) -> dict[str, str]:
    """The pretraining pool of each method in words."""
    return {
        method: pool_text(parts, without_own=method in results.pools_without_own)
        for method, parts in results.pools.items()
    }


def overall(results: StudyResults, baseline: str) -> list[list[Compared]]:
    """The comparisons that summarise the study, a list of methods for each place.

    They are those over all headline scores, of the first budget that all data sets have; without such a budget, those of
    each headline score, of the first budget of its data set.
    """
    found: dict[Place, list[Compared]] = {}
    for line in results.comparisons:
        if line.baseline == baseline and line.error_removed is not None:
            found.setdefault((line.dataset, line.split, line.budget), []).append(line)
    common = [found[place] for budget in results.budgets if (place := ("", "", budget)) in found]
    if common:
        return common[:1]
    first = {f"{place[0]}/{place[1]}": place for place in results.first_places}
    return [found[first[text]] for text in results.headline if first.get(text) in found]


def comparison_scores(results: StudyResults, lines: Sequence[Compared]) -> str:
    """The scores of an overall comparison in words."""
    first = lines[0]
    scores = f"{first.dataset} {first.split}" if first.dataset else "the mean of all headline scores"
    return scores + (f", budget {first.budget}" if len(results.budgets) > 1 else "")


def sentences(results: StudyResults) -> list[str]:
    """The result against each baseline, one sentence for each of :func:`overall`."""
    found = []
    for lines in (part for baseline in results.baselines for part in overall(results, baseline)):
        removed = {line.method: line.error_removed for line in lines if line.error_removed is not None}
        best = max(lines, key=lambda line: removed[line.method].value)
        value = removed[best.method]
        share = f"{100 * abs(value.value):.0f}% of the Dice error{_interval(results, value)}"
        text = f"Against “{best.baseline}”, over {comparison_scores(results, lines)}, "
        if value.value > 0:
            text += (
                f"“{best.method}” is best: it removes {share} and is better with {best.wins} of {best.units} "
            )
            found.append(f"{text}{_UNITS[best.unit]}.")
        else:
            found.append(f"{text}no method is better: the nearest, “{best.method}”, adds {share}.")
    return found


def _interval(results: StudyResults, value: Estimate) -> str:
    if value.low is None or value.high is None:
        return " (no interval: too few pairs, or pairs with images in common)"
    text = f"{100 * value.low:+.0f}% to {100 * value.high:+.0f}% removed"
    doubt = ", so it may be chance" if value.low <= 0 <= value.high else ""
    return f" ({100 * results.confidence:.0f}% interval {text}{doubt})"


def _purity(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}%"


def spread_text(found: Spread | None) -> str:
    """Mean and standard deviation."""
    if found is None:
        return "-"
    return f"{found.mean:.3f}" + ("" if found.std is None else f" ± {found.std:.3f}")


def points_text(found: Spread | None) -> str:
    """Mean and standard deviation of a share of the area, in percentage points."""
    if found is None:
        return "-"
    return f"{100 * found.mean:.1f}" + ("" if found.std is None else f" ± {100 * found.std:.1f}")


def _worst(found: Worst | None) -> str:
    if found is None:
        return "-"
    more = f" +{len(found.references) - 1}" if len(found.references) > 1 else ""
    return f"{found.mean_dice:.3f} ({found.references[0].partition('/')[2]}{more})"


def _estimate(found: Estimate | None, *, percent: bool) -> tuple[str, str]:
    """A value and its interval."""

    def shown(value: float) -> str:
        return f"{100 * value:+.0f}%" if percent else f"{value:+.3f}"

    if found is None:
        return "-", "-"
    if found.low is None or found.high is None:
        return shown(found.value), "-"
    return shown(found.value), f"{shown(found.low)} to {shown(found.high)}"
