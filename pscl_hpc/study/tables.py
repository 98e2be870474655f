"""The tables of a study as Markdown, from ``results.json``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

TABLE_FILE = "table.md"


def markdown(results: dict[str, Any]) -> str:
    """All tables and what has to be said with them."""
    parts = [f"# {results['study']}", "\n".join(notes(results))]
    budgets = results["budgets"]
    for place in places(results):
        dataset, split, budget = place
        said = f", budget {budget}" if len(budgets) > 1 else ""
        parts.append(f"## {dataset}, {split}{said}\n\n{score_table(results, place)}")
    for baseline in dict.fromkeys(line["baseline"] for line in results["comparisons"]):
        parts.append(f"## Against {baseline}\n\n{comparison_table(results, baseline)}")
    if results["failed"]:
        lines = [f"- {item['job']}: {item['reason']}" for item in results["failed"]]
        parts.append("## Failed\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def places(results: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """Data set, split and budget of each table of scores."""
    return list(dict.fromkeys((line["dataset"], line["split"], line["budget"]) for line in results["table"]))


def notes(results: dict[str, Any]) -> list[str]:
    """What the figures are, and what they were made from, one sentence each."""
    done = len({row["key"] for row in results["rows"]})
    lines = [
        f"{done} of {results['runs']} runs are scored; seeds {', '.join(map(str, results['seeds']))}.",
        "Dice is pooled over the images of a split; mean Dice is that of the foreground classes; ± is the sample "
        "standard deviation over runs. Checkpoints are chosen on validation images.",
    ]
    pools: dict[str, list[str]] = {}
    for method, counts in results["pools"].items():
        pools.setdefault(pool_sentence(counts), []).append(method)
    for text, methods in pools.items():
        lines.append(
            f"Pretraining pool of {', '.join(methods)}: {text}; no test or validation image (checked by split and by "
            "pixels)."
        )
    if results["pools"]:
        lines.append(
            {
                "reference": "Where a pretraining uses annotation, it is that of the fine-tuning, one trunk for each.",
                "dataset": "Where a pretraining uses annotation, it is that of one image per data set, which is a "
                "second annotated image for fine-tunings on another one.",
                "study": "Where a pretraining uses annotation, it is that of one image for all data sets, which is a "
                "second annotated image for fine-tunings on another one.",
            }[results["pretrain_per"]]
        )
    if len(results["commits"]) > 1:
        lines.append(
            f"The runs are of {len(results['commits'])} commits: "
            f"{', '.join(commit[:7] or 'unknown' for commit in results['commits'])}."
        )
    return lines


def pool_sentence(counts: Sequence[dict[str, Any]]) -> str:
    """The images of a pool in words."""
    total = sum(item["images"] for item in counts)
    parts = [f"{item['dataset']} {item['images']} ({item['split'] or 'no split'})" for item in counts]
    return f"{total} images, {', '.join(parts)}"


def score_table(results: dict[str, Any], place: tuple[str, str, Any]) -> str:
    """Methods as rows: mean Dice, worst reference, Dice per class, accuracy."""
    lines = [line for line in results["table"] if (line["dataset"], line["split"], line["budget"]) == place]
    classes = list(dict.fromkeys(name for line in lines for name in line["dice"]))
    head = ["method", "runs", "mean Dice", "worst reference", *classes, "accuracy"]
    rows = [
        [
            line["method"],
            str(line["runs"]),
            spread_text(line["mean_dice"]),
            worst_text(line["worst"]),
            *(spread_text(line["dice"].get(name)) for name in classes),
            spread_text(line["pixel_accuracy"]),
        ]
        for line in lines
    ]
    return pipe_table(head, rows)


def comparison_table(results: dict[str, Any], baseline: str) -> str:
    """Pairs with one baseline: gain and share of the error removed, with intervals."""
    several = len(results["budgets"]) > 1
    share = f"{100 * results['confidence']:.0f}%"
    head = ["method", "scores", *(["budget"] if several else []), "units", "better in", "gain in mean Dice"]
    head += [f"its {share} interval", "Dice error removed", f"its {share} interval", "gain of the worst"]
    rows = [
        [
            line["method"],
            f"{line['dataset']} {line['split']}" if line["dataset"] else "all headline scores",
            *([str(line["budget"])] if several else []),
            str(line["units"]),
            f"{line['wins']}/{line['units']}",
            f"{line['gain']['value']:+.3f}",
            _between(line["gain"], lambda value: f"{value:+.3f}"),
            percent_text(line["error_removed"]),
            _between(line["error_removed"], lambda value: f"{100 * value:+.0f}%"),
            f"{line['worst_gain']:+.3f}",
        ]
        for line in results["comparisons"]
        if line["baseline"] == baseline
    ]
    return pipe_table(head, rows)


def spread_text(found: dict[str, Any] | None) -> str:
    """Mean and standard deviation."""
    if found is None:
        return "-"
    return f"{found['mean']:.3f}" + ("" if found["std"] is None else f" ± {found['std']:.3f}")


def worst_text(found: dict[str, Any] | None) -> str:
    """The lowest Dice and its annotated image."""
    if found is None:
        return "-"
    first = found["references"][0].partition("/")[2]
    more = f" +{len(found['references']) - 1}" if len(found["references"]) > 1 else ""
    return f"{found['mean_dice']:.3f} ({first}{more})"


def percent_text(found: dict[str, Any] | None) -> str:
    """A share as a signed percentage."""
    return "-" if found is None else f"{100 * found['value']:+.0f}%"


def pipe_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _between(found: dict[str, Any] | None, form: Any) -> str:
    if found is None or found["low"] is None:
        return "-"
    return f"{form(found['low'])} to {form(found['high'])}"
