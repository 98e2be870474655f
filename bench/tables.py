"""Write measured tables into the documentation.

    python -m bench.tables            fill every block
    python -m bench.tables --check    exit 1 if a block differs from its result file

A block stands between `<!-- table: NAME -->` and `<!-- end table -->`; NAME is one of the functions below. No figure in
the documentation is typed by hand: each comes from a file in bench/results/.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench import gpu_tables

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
DOCUMENTS = ("README.md", "kernels/README.md", "docs/*.md", "bench/README.md", "slurm/README.md")
BLOCK = re.compile(r"(<!-- table: ([a-z0-9-]+) -->\n).*?(<!-- end table -->)", re.DOTALL)


def study(name: str, baseline: str = "") -> str:
    """A study: mean Dice of every method on every split with one budget, and what that removes of the Dice error.

    Args:
        name: The result.
        baseline: What is compared with; empty for all baselines of the study.
    """
    content = _load(name)
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
    baselines = [baseline] if baseline else list(dict.fromkeys(baseline for _, baseline in compared))
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
        cells += [_removed(compared.get((method, baseline))) for baseline in baselines]
        rows.append([method, *cells])
    head = ["method", *(f"{dataset} {split}" for dataset, split in places)]
    head += [f"Dice error removed against {baseline}" for baseline in baselines]
    said = f"Mean Dice ± standard deviation over {_runs(lines)} runs (worst annotated image)"
    over = ", ".join(result["headline"])
    intervals = f"error removed over {over} with its {100 * result['confidence']:.0f}% interval."
    intervals += f" All runs together took {_job_seconds(result['rows']) / 60:.0f} minutes of job time."
    return f"{said}; {intervals}\n\n" + _table(head, rows) + _origin(name, content)


def budgets(name: str) -> str:
    """A study on one data set: mean Dice of every method with every amount of annotation."""
    content = _load(name)
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
    return f"{said}\n\n" + _table(head, rows) + _origin(name, content)


def sampling(name: str) -> str:
    """Purity of the cells that pretrainings of a study sampled, in its first and last quarter."""
    content = _load(name)
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
    return _table(["method", "templates from", *names], rows) + _origin(name, content)


def matching(name: str) -> str:
    """Purity of what an untrained sampler finds, by the share of texture."""
    content = _load(name)
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
    return _table(head, rows) + _origin(name, content)


def _shares(values: list[float | None]) -> str:
    return " / ".join(_share(value) for value in values)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}%"


def step(name: str) -> str:
    """One step beside the released code."""
    content = _load(name)
    result = content["result"]
    rows = [
        [label, f"{result['best_seconds'][key]:.1f}", f"{result['peak_mb'][key] / 1024:.2f}"]
        for key, label in (("released", "released code"), ("ours", "pscl_hpc"))
    ]
    rows.append(["ratio", f"{result['speedup']:.1f}x faster", f"{1 / result['memory_ratio']:.1f}x less"])
    return _table(["", "seconds a step", "peak memory, GiB"], rows) + _origin(name, content)


def scaling(name: str) -> str:
    """Steps of several ranks, measured and predicted."""
    if not (RESULTS / f"{name}.json").is_file():
        return "Not measured yet."
    content = _load(name)
    rows = [
        [
            str(line["ranks"]),
            f"{line['measured_seconds']:.2f}",
            f"{line['predicted_seconds']:.2f}",
            f"{line['measured_over_predicted']:.2f}",
            f"{line['measured_efficiency']:.0%}",
            f"{line['own_norm_seconds']:.2f}",
            f"{line['apart_seconds']:.2f}",
            f"{line['efficiency_of_communication']:.0%}",
        ]
        for line in content["result"]["lines"]
    ]
    head = ["ranks", "s per step", "predicted", "measured / predicted", "efficiency", "own batch norm, s per step",
            "apart, s per step", "efficiency of communication"]  # fmt: skip
    return _table(head, rows) + _origin(name, content)


def chaos(*names: str) -> str:
    """Trainings killed at random moments."""
    found = [name for name in names if (RESULTS / f"{name}.json").is_file()]
    if not found:
        return "Not measured yet."
    rows = []
    for name in found:
        result = _load(name)["result"]
        same = "yes" if result["identical"] else "NO"
        rows.append(
            [
                str(result["ranks"]),
                str(result["kills"]),
                str(result["steps"]),
                same,
                str(len(result["left_over"])),
            ]
        )
    head = ["ranks", "kills", "steps", "final state the same to the last bit", "half-written files left"]
    return _table(head, rows) + "".join(_origin(name, _load(name)) for name in found)


def checkpoint_overhead(name: str) -> str:
    """What checkpoints cost."""
    if not (RESULTS / f"{name}.json").is_file():
        return "Not measured yet."
    content = _load(name)
    result = content["result"]
    row = [
        f"{result['checkpoint_mb']:.1f}",
        f"{result['step_ms']:.0f}",
        f"{result['handing_over_ms']:.1f}",
        f"{result['one_checkpoint_ms']:.0f}",
        f"{result['share_at_default_interval']:.2%}",
    ]
    every = result["default_every_steps"]
    head = [
        "checkpoint, MB",
        "step, ms",
        "step waits for the copy, ms",
        "one checkpoint in all, ms",
        f"share of the time at one in {every} steps",
    ]
    return _table(head, [row]) + _origin(name, content)


def step_loss(name: str) -> str:
    """What each option changes in the loss."""
    content = _load(name)
    keys = ("loss", "image/loss", "scale0/loss", "scale1/loss", "scale2/loss")
    rows = [[row["what"], *(f"{row[key]:.6f}" for key in keys)] for row in content["result"]["loss"]]
    return _table(["", "loss", "image", "scale 0", "scale 1", "scale 2"], rows) + _origin(name, content)


def kernels(name: str, form: str = "chunked") -> str:
    """Time and memory of an operation on a CPU, each form beside ours."""
    if not (RESULTS / f"{name}.json").is_file():
        return "Not measured yet."
    content = _load(name)
    measured = content["result"]["measured"]
    ours = measured[form]
    rows = [
        [
            label.replace("_", " "),
            f"{1e3 * found['median_seconds']:,.0f}",
            f"{found['peak_bytes'] / 1e6:,.1f}",
            f"{ours['median_seconds'] / found['median_seconds']:.3f}",
            f"{ours['peak_bytes'] / found['peak_bytes']:.4f}",
        ]
        for label, found in measured.items()
    ]
    shape = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in content["result"]["shape"].items())
    head = ["form", "median, ms of CPU time", "peak memory, MB", f"{form} / it, time", f"{form} / it, memory"]
    return f"{shape}:\n\n" + _table(head, rows) + _origin(name, content)


def peers(name: str) -> str:
    """Both losses beside what others offer, on a CPU, fastest first."""
    content = _load(name)
    result = content["result"]
    rows = [
        [
            task,
            peer,
            f"{1e3 * found['median_seconds']:,.0f}",
            f"{found['peak_bytes'] / 1e6:,.1f}",
            f"{found['time_ratio']:.3f}",
            f"{found['memory_ratio']:.4f}",
            found.get("differs", ""),
        ]
        for label, found in sorted(
            result["measured"].items(),
            key=lambda pair: (pair[0].partition(", ")[0], pair[1]["median_seconds"]),
        )
        for task, _, peer in [label.partition(", ")]
    ]
    shape = ", ".join(f"{key} {value}" for key, value in result["shape"].items())
    head = ["task", "implementation", "median, ms of CPU time", "peak memory, MB", "chunked / it, time"]
    head += ["chunked / it, memory", "what it does differently"]
    return f"{shape}:\n\n" + _table(head, rows) + _origin(name, content)


def archive_rate(name: str) -> str:
    """Random windows per second by compression."""
    content = _load(name)
    rows = []
    for row in content["result"]["rows"]:
        plain, masks = row.get("crops_per_second_h5py"), row.get("mask_crops_per_second")
        rows.append(
            [
                row["dtype"],
                row["compression"],
                f"{row['crops_per_second']:,}",
                f"{plain:,}" if plain else "-",
                f"{row['stored_per_raw']:.2f}",
                f"{masks:,}" if masks else "-",
                f"{row['mask_stored_per_raw']:.2f}" if masks else "-",
            ]
        )
    head = ["dtype", "compression", "crops/s", "the same by h5py", "size", "mask crops/s", "mask size"]
    return _table(head, rows) + _origin(name, content)


def synthetic(name: str) -> str:
    """Class shares and what grey level alone can do."""
    content = _load(name)
    rows = []
    for family, found in content["result"]["families"].items():
        shares = " / ".join(f"{100 * value:.1f}" for value in found["share"])
        levels = " / ".join(f"{value:.2f}" for value in found["best_dice_by_grey_level"][1:])
        rows.append([family, shares, levels, f"{100 * found['images_with_rare_class']:.0f}%"])
    head = [
        "family",
        "share of classes 0 / 1 / 2 / 3, %",
        "best Dice by grey level, 1 / 2 / 3",
        "images with class 3",
    ]
    return _table(head, rows) + _origin(name, content)


def latency(name: str) -> str:
    """From submission to the first step on an idle Slurm."""
    content = _load(name)
    rows = [
        [
            str(row["nodes"]),
            str(row["ranks"]),
            *(f"{row[f'median_{key}']:.1f}" for key in ("handed_over", "first_step")),
            f"{max(row['first_step']):.1f}",
        ]
        for row in content["result"]["rows"]
    ]
    head = ["nodes", "ranks", "handed over after, s", "first step after, s (median)", "longest"]
    return _table(head, rows) + _origin(name, content)


TABLES: dict[str, Callable[[], str]] = {
    "cpu-submit-latency": lambda: latency("cpu-submit-latency"),
    "cpu-study-one-shot": lambda: study("cpu-study-one-shot"),
    "cpu-study-against-none": lambda: study("cpu-study-one-shot", "none"),
    "cpu-matching-purity": lambda: matching("cpu-matching-purity"),
    "cpu-study-sampling": lambda: sampling("cpu-study-one-shot"),
    "cpu-study-data-efficiency": lambda: budgets("cpu-study-data-efficiency"),
    "cpu-study-core": lambda: budgets("cpu-study-core"),
    "gpu-study-one-shot": lambda: study("gpu-study-one-shot"),
    "cpu-step": lambda: step("cpu-step-vs-released"),
    "cpu-patch-nt-xent": lambda: kernels("cpu-patch-nt-xent"),
    "cpu-queue-info-nce": lambda: kernels("cpu-queue-info-nce"),
    "cpu-sample-similar": lambda: kernels("cpu-sample-similar"),
    "cpu-sampling-path": lambda: kernels("cpu-sampling-path", "sampled"),
    "cpu-archive-rate": lambda: archive_rate("cpu-archive-rate"),
    "cpu-chaos": lambda: chaos("cpu-chaos-1", "cpu-chaos-2"),
    "cpu-checkpoint-overhead": lambda: checkpoint_overhead("cpu-checkpoint-overhead"),
    "cpu-scaling": lambda: scaling("cpu-scaling"),
    "synthetic-statistics": lambda: synthetic("synthetic-statistics"),
    "cpu-peers": lambda: peers("cpu-peers"),
    "cpu-step-loss": lambda: step_loss("cpu-step-vs-released"),
    **{name: partial(gpu_tables.table, name, RESULTS) for name in gpu_tables.GPU_TABLES},
}


def fill(text: str) -> str:
    """The text with every block replaced by its table."""

    def replace(match: re.Match[str]) -> str:
        name = match.group(2)
        if name not in TABLES:
            sys.exit(f"no table is called {name}; there are {', '.join(TABLES)}")
        try:
            table = TABLES[name]()
        except FileNotFoundError:
            table = "Not measured yet."
        return f"{match.group(1)}{table}\n{match.group(3)}"

    return BLOCK.sub(replace, text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for path in sorted(path for pattern in DOCUMENTS for path in ROOT.glob(pattern)):
        old = path.read_text(encoding="utf-8")
        new = fill(old)
        if new != old:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(new, encoding="utf-8")
    print("\n".join(stale) or "all tables are up to date")
    sys.exit(1 if check and stale else 0)


def _job_seconds(rows: list[dict[str, Any]]) -> float:
    """Seconds of all runs of a study; a trunk that several share counts once."""
    trunks = {row["pretraining"]: row["seconds"].get("pretrain", 0.0) for row in rows if row["pretraining"]}
    runs = {
        row["key"]: sum(seconds for part, seconds in row["seconds"].items() if part != "pretrain")
        for row in rows
    }
    return sum(trunks.values()) + sum(runs.values())


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


def _load(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return content


def _spread(mean: float, std: float | None) -> str:
    return f"{mean:.3f}" if std is None else f"{mean:.3f} ± {std:.3f}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _origin(name: str, content: dict[str, Any]) -> str:
    device = content["device"]
    where = ", ".join(device.get("gpu", [])) or f"{device['cpu']}, {device['cpu_count']} cores"
    return (
        f"\n\n`bench/results/{name}.json`: {where}, torch {content['versions']['torch']}, "
        f"{content['date'][:10]}, commit {content['commit'][:7]}; `{content['command']}`"
    )


if __name__ == "__main__":
    main()
