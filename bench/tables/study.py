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
    single = all(line["runs"] == 1 for line in lines.values())
    with_errors = any(line.get("fraction_error") for line in lines.values())
    rows = []
    for method in result["methods"]:
        cells = []
        for place in places:
            line = lines.get((method, *place))
            worst = line and line["worst"]
            if not line or not worst:
                cells.append("-")
                continue
            mean = _spread(line["mean_dice"]["mean"], line["mean_dice"]["std"])
            cells.append(mean if single else f"{mean} ({worst['mean_dice']:.3f})")
        if with_errors:
            errors = [lines.get((method, *place), {}).get("fraction_error") for place in places]
            cells.append(f"{100 * fmean(one['mean'] for one in errors):.1f}" if all(errors) else "-")
        cells += [_removed(compared.get((method, baseline))) for baseline in shown]
        rows.append([method, *cells])
    head = ["method", *(f"{dataset} {split}" for dataset, split in places)]
    head += ["error of the phase fraction, percentage points"] if with_errors else []
    head += [f"Dice error removed against {baseline}" for baseline in shown]
    said = f"Mean Dice ± standard deviation over {_runs(lines)} runs (worst annotated image)"
    if single:
        said = "Mean Dice of one run"
    if shown and single:
        said += f"; error removed over {', '.join(result['headline'])}"
    elif shown:
        over, share = ", ".join(result["headline"]), 100 * result["confidence"]
        said += f"; error removed over {over} with its {share:.0f}% interval"
    said += f". All runs together took {_job_seconds(result['rows']) / 60:.0f} minutes of job time."
    return f"{said}\n\n" + table(head, rows) + origin(name, content)


def by_budget(name: str) -> str:
    """A study with several budgets: mean Dice of every method on every split, by annotated images."""
    content = load(name)
    result = content["result"]
    lines = {
        (line["budget"], line["method"], line["dataset"], line["split"]): line for line in result["table"]
    }
    places = list(dict.fromkeys((dataset, split) for _, _, dataset, split in lines))
    rows = []
    for budget in result["budgets"]:
        for method in result["methods"]:
            found = [lines.get((budget, method, *place)) for place in places]
            scored = [line for line in found if line and line["runs"]]
            if not scored:
                continue
            runs = dict.fromkeys(line["runs"] for line in scored)
            cells = [
                _spread(line["mean_dice"]["mean"], line["mean_dice"]["std"]) if line else "-"
                for line in found
            ]
            rows.append([str(budget), method, ", ".join(map(str, runs)), *cells])
    head = ["annotated images", "method", "runs", *(f"{dataset} {split}" for dataset, split in places)]
    said = "Mean Dice ± standard deviation over runs with different annotated images."
    return f"{said}\n\n" + table(head, rows) + origin(name, content)


def robustness(name: str) -> str:
    """Mean Dice of a method's networks on changed validation images, without and with correction of shading."""
    content = load(name)
    rows = content["result"]["rows"]
    lines = []
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        for correct in (False, True):
            found = [
                row["dice"] for row in rows if (row["dataset"], row["correct_shading"]) == (dataset, correct)
            ]
            means = [fmean(dice[change] for dice in found) for change in found[0]]
            lines.append([dataset, "yes" if correct else "no", *(f"{mean:.3f}" for mean in means)])
    head = ["images", "`--correct-shading`", *rows[0]["dice"]]
    return table(head, lines) + origin(name, content)


def unweighted(name: str) -> str:
    """Mean Dice and error of the phase fraction of a study's networks, with class weights as trained and taken out."""
    content = load(name)
    rows = content["result"]["rows"]
    lines = []
    for dataset, split in sorted({(row["dataset"], row["split"]) for row in rows}):
        for method in dict.fromkeys(row["method"] for row in rows):
            found = [
                row
                for row in rows
                if (row["dataset"], row["split"], row["method"]) == (dataset, split, method)
            ]
            cells = []
            for key, scale, digits in (("mean_dice", 1, 3), ("fraction_error", 100, 2)):
                for out in (False, True):
                    mean = fmean(row[key] for row in found if row["unweighted"] is out)
                    cells.append(f"{scale * mean:.{digits}f}")
            lines.append([f"{dataset} {split}", method, *cells])
    error = "error of the phase fraction, percentage points"
    head = ["images", "network", "Dice", "Dice, `--unweighted`", error, f"{error}, `--unweighted`"]
    return table(head, lines) + origin(name, content)


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
