"""The tables of a study as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pscl_hpc.report.curves import scale_name
from pscl_hpc.report.study_results import Compared, Estimate, Place, StudyResults, Worst
from pscl_hpc.report.study_text import PURITY, notes, wins_text
from pscl_hpc.segmentation.summary import Spread

TABLE_FILE = "table.md"
OVERALL = "all headline scores"


def markdown(results: StudyResults) -> str:
    """All tables and what has to be said with them."""
    parts = [f"# {results.study}", "\n".join(f"- {note}" for note in notes(results))]
    for place in results.places:
        said = f", budget {place[2]}" if len(results.budgets) > 1 else ""
        parts.append(f"## {place[0]}, {place[1]}{said}\n\n{score_table(results, place)}")
    for baseline in results.baselines:
        parts.append(f"## Against {baseline}\n\n{comparison_table(results, baseline)}")
    if results.sampling:
        parts.append(f"## Purity of sampled cells\n\n{PURITY}\n\n{sampling_table(results)}")
    if results.failed:
        lines = [f"- {item.job}: {item.reason}" for item in results.failed]
        parts.append("## Failed\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def score_table(results: StudyResults, place: Place) -> str:
    """Methods as rows: mean Dice, worst reference, Dice in validation, Dice per class, accuracy."""
    lines = [line for line in results.table if line.place == place]
    classes = list(dict.fromkeys(name for line in lines for name in line.dice))
    head = ["method", "runs", "mean Dice", "worst reference", "validation Dice", *classes, "accuracy"]
    rows = [
        [
            line.method,
            str(line.runs),
            spread_text(line.mean_dice),
            worst_text(line.worst),
            spread_text(line.validation_dice),
            *(spread_text(line.dice.get(name)) for name in classes),
            spread_text(line.pixel_accuracy),
        ]
        for line in lines
    ]
    return pipe_table(head, rows)


def comparison_table(results: StudyResults, baseline: str) -> str:
    """Pairs with one baseline: gain and share of the error removed, with intervals."""
    several = len(results.budgets) > 1
    interval = f"its {100 * results.confidence:.0f}% interval"
    head = ["method", "scores", *(["budget"] if several else []), "better in", "gain in mean Dice", interval]
    head += ["Dice error removed", interval, "gain of the worst"]
    return pipe_table(
        head,
        (_compared_row(line, several) for line in results.comparisons if line.baseline == baseline),
    )


def sampling_table(results: StudyResults) -> str:
    """Purity of sampled cells of every pretraining, at the start and at the end.

    The last scale of every decoder is the full resolution; a decoder with fewer scales has no coarse ones.
    """
    scales = max(len(found.last) for found in results.sampling)
    names = [scale_name(index, scales) for index in range(scales)]
    head = ["method", "templates from", *names]
    rows = [
        [
            found.method,
            ", ".join(found.references) or "clusters",
            *["-"] * (scales - len(found.last)),
            *(f"{purity_text(a)} → {purity_text(b)}" for a, b in zip(found.first, found.last, strict=True)),
        ]
        for found in results.sampling
    ]
    return pipe_table(head, rows)


def purity_text(value: float | None) -> str:
    """A share in percent."""
    return "-" if value is None else f"{100 * value:.0f}%"


def spread_text(found: Spread | None) -> str:
    """Mean and standard deviation."""
    if found is None:
        return "-"
    return f"{found.mean:.3f}" + ("" if found.std is None else f" ± {found.std:.3f}")


def worst_text(found: Worst | None) -> str:
    """The lowest Dice and its annotated image."""
    if found is None:
        return "-"
    more = f" +{len(found.references) - 1}" if len(found.references) > 1 else ""
    return f"{found.mean_dice:.3f} ({found.references[0].partition('/')[2]}{more})"


def estimate_text(found: Estimate | None, *, percent: bool) -> tuple[str, str]:
    """A figure and its interval."""

    def shown(value: float) -> str:
        return f"{100 * value:+.0f}%" if percent else f"{value:+.3f}"

    if found is None:
        return "-", "-"
    if found.low is None or found.high is None:
        return shown(found.value), "-"
    return shown(found.value), f"{shown(found.low)} to {shown(found.high)}"


def pipe_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _compared_row(line: Compared, several: bool) -> list[str]:
    return [
        line.method,
        f"{line.dataset} {line.split}" if line.dataset else OVERALL,
        *([str(line.budget)] if several else []),
        wins_text(line),
        *estimate_text(line.gain, percent=False),
        *estimate_text(line.error_removed, percent=True),
        f"{line.worst_gain:+.3f}",
    ]
