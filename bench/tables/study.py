"""Tables of studies and of their sampling."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from bench.tables.common import load, origin, table


def study(name: str, *baselines: str) -> str:
    """A study: mean Dice of every method on every split with one budget, and the share of the Dice error removed.

    Args:
        name: The result.
        baselines: Baselines to compare with; by default all of the study.
    """
    content = load(name)
    result = content["result"]
    budget = result["budgets"][0]
    lines = {
        (line["method"], line["dataset"], line["split"]): line
        for line in result["table"]
        if line["budget"] == budget
    }
    compared = {
        (line["method"], line["baseline"]): line
        for line in result["comparisons"]
        if line["budget"] == budget and not line["dataset"]
    }
    places = list(dict.fromkeys((dataset, split) for _, dataset, split in lines))
    shown = baselines or tuple(dict.fromkeys(baseline for _, baseline in compared))
    rows = []
    for method in result["methods"]:
        cells = []
        for place in places:
            line = lines.get((method, *place))
            worst = line and line["worst"]
            cells.append(
                f"{_spread(line['mean_dice']['mean'], line['mean_dice']['std'])} ({worst['mean_dice']:.3f})"
                if line and worst
                else "-"
            )
        cells += [_removed(compared.get((method, baseline))) for baseline in shown]
        rows.append([method, *cells])
    head = ["method", *(f"{dataset} {split}" for dataset, split in places)]
    head += [f"Dice error removed against {baseline}" for baseline in shown]
    said = f"Mean Dice ± standard deviation over {_runs(lines)} runs (worst annotated image)"
    over = ", ".join(result["headline"])
    intervals = f"error removed over {over} with its {100 * result['confidence']:.0f}% interval."
    intervals += f" All runs together took {_job_seconds(result['rows']) / 60:.0f} minutes of job time."
    return f"{said}; {intervals}\n\n" + table(head, rows) + origin(name, content)


def validation(name: str) -> str:
    """Best validation Dice of every entry of a study for each annotated image, by which settings are chosen."""
    content = load(name)
    rows = {(row["method"], *row["references"]): row for row in content["result"]["rows"]}
    images = list(dict.fromkeys(image for _, image in rows))
    lines = []
    for method in content["result"]["methods"]:
        found = [rows[method, image]["validation_dice"] for image in images]
        lines.append([method, *(f"{value:.3f}" for value in found), f"{sum(found) / len(found):.3f}"])
    return table(["entry", *images, "mean"], lines) + origin(name, content)


def inference(name: str) -> str:
    """Mean Dice of trained networks by way of inference, and how many are better than plain inference."""
    content = load(name)
    rows, ways = content["result"]["rows"], list(content["result"]["ways"])
    methods = list(dict.fromkeys(row["method"] for row in rows))
    places = sorted(
        dict.fromkeys((row["dataset"], row["split"], row["validates"]) for row in rows),
        key=lambda place: (place[0], not place[2], place[1]),
    )
    lines = []
    for dataset, split, validates in places:
        for method in methods:
            found = [
                row["dice"]
                for row in rows
                if (row["method"], row["dataset"], row["split"]) == (method, dataset, split)
            ]
            cells = [f"{fmean(dice[ways[0]] for dice in found):.3f}"]
            for way in ways[1:]:
                better = sum(dice[way] > dice[ways[0]] for dice in found)
                cells.append(f"{fmean(dice[way] for dice in found):.3f} ({better} of {len(found)})")
            lines.append([f"{dataset} {split}" + (" (validation)" if validates else ""), method, *cells])
    return table(["images", "network", *ways], lines) + origin(name, content)


def budgets(name: str) -> str:
    """A study on one dataset: mean Dice of every method with every amount of annotation."""
    content = load(name)
    result = content["result"]
    [place] = {(line["dataset"], line["split"]) for line in result["table"]}
    lines = {(line["method"], line["budget"]): line for line in result["table"]}
    rows = []
    for budget in result["budgets"]:
        found = [lines.get((method, budget)) for method in result["methods"]]
        runs = {str(line["runs"]) for line in found if line}
        cells = [
            _spread(line["mean_dice"]["mean"], line["mean_dice"]["std"]) if line else "-" for line in found
        ]
        rows.append([str(budget), ", ".join(sorted(runs)), *cells])
    said = f"Mean Dice on {place[0]} {place[1]}, ± standard deviation over runs:"
    head = ["annotated images", "runs each", *result["methods"]]
    return f"{said}\n\n" + table(head, rows) + origin(name, content)


def sampling(name: str) -> str:
    """Purity of the patches that a study's pretrainings sampled in their first and last quarter."""
    content = load(name)
    found = content["result"]["sampling"]
    names = ["1/4 resolution", "1/2 resolution", "full resolution"]
    rows = [
        [
            line["method"],
            ", ".join(line["references"]) or "clusters",
            *(
                f"{_share(first)} → {_share(last)}"
                for first, last in zip(line["first"], line["last"], strict=True)
            ),
        ]
        for line in found
    ]
    return table(["method", "templates from", *names], rows) + origin(name, content)


def matching(name: str) -> str:
    """Purity of the patches that an untrained sampler finds, by the share of texture."""
    content = load(name)
    lines: dict[str, dict[float, dict[str, list[float | None]]]] = {}
    for row in content["result"]["rows"]:
        lines.setdefault(row["reference"], {})[row["texture"]] = row
    shares = sorted({row["texture"] for row in content["result"]["rows"]})
    rows = [
        [
            reference,
            _shares(found[shares[0]]["chance"]),
            *(_shares(found[share]["purity"]) for share in shares),
        ]
        for reference, found in lines.items()
    ]
    head = ["templates from", "chance", *(f"texture: {share:g}" for share in shares)]
    return table(head, rows) + origin(name, content)


def _shares(values: list[float | None]) -> str:
    return " / ".join(_share(value) for value in values)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}%"


def _job_seconds(rows: list[dict[str, Any]]) -> float:
    """Seconds of all runs of a study; a shared trunk counts once."""
    trunks = {row["pretraining"]: row["seconds"].get("pretrain", 0.0) for row in rows if row["pretraining"]}
    runs = {
        row["key"]: sum(seconds for part, seconds in row["seconds"].items() if part != "pretrain")
        for row in rows
    }
    return float(sum(trunks.values()) + sum(runs.values()))


def _runs(lines: dict[Any, dict[str, Any]]) -> str:
    counts = sorted({line["runs"] for line in lines.values()})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _removed(line: dict[str, Any] | None) -> str:
    found = line and line["error_removed"]
    if not found:
        return "-"
    if found["low"] is None:
        return f"{100 * found['value']:+.0f}%"
    return f"{100 * found['value']:+.0f}% ({100 * found['low']:+.0f}% to {100 * found['high']:+.0f}%)"


def _spread(mean: float, std: float | None) -> str:
    return f"{mean:.3f}" if std is None else f"{mean:.3f} ± {std:.3f}"


def against_earlier(name: str, method: str, earlier: str, others: dict[str, str]) -> str:
    """A method beside methods of another study on the same data sets: mean Dice over the annotated images of both.

    Args:
        name: The result with ``method``.
        method: One of its methods, with one annotated image.
        earlier: Another result on the same images.
        others: Methods of the other result, and how the table calls them.
    """
    new, old = load(name), load(earlier)
    found = {
        (row["dataset"], row["split"], *row["references"]): row
        for row in new["result"]["rows"]
        if row["method"] == method and row["budget"] == 1
    }
    before = {
        (row["method"], row["dataset"], row["split"], *row["references"]): row["mean_dice"]
        for row in old["result"]["rows"]
        if row["budget"] == 1
    }
    places = list(dict.fromkeys(key[:2] for key in found))
    rows = []
    for place in sorted(places):
        keys = [key for key in found if key[:2] == place]
        cells = [[before[other, *key] for key in keys] for other in others]
        cells.append([found[key]["mean_dice"] for key in keys])
        rows.append(
            [" ".join(place), str(len(keys)), *(f"{fmean(cell):.3f} ({min(cell):.3f})" for cell in cells)]
        )
    seconds = [row["seconds"]["finetune"] for row in found.values()]
    said = (
        "Mean foreground Dice on test images over annotated images that are each used alone (worst annotated image). A "
        f"training of the default recipe took {min(seconds) / 60:.0f} to {max(seconds) / 60:.0f} minutes on one core."
    )
    head = ["test images", "annotated images", *others.values(), "default recipe"]
    return f"{said}\n\n" + table(head, rows) + origin(name, new) + "\n" + origin(earlier, old)
