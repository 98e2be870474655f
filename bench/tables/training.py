"""Tables of pretraining on a CPU: its steps, ranks, checkpoints and start."""

from __future__ import annotations

from bench.tables.common import RESULTS, load, origin, table


def step(name: str) -> str:
    """One step beside the released code."""
    content = load(name)
    result = content["result"]
    rows = [
        [label, f"{result['best_seconds'][key]:.1f}", f"{result['peak_mb'][key] / 1024:.2f}"]
        for key, label in (("released", "released code"), ("ours", "pscl_hpc"))
    ]
    rows.append(["ratio", f"{result['speedup']:.1f}x faster", f"{1 / result['memory_ratio']:.1f}x less"])
    return table(["", "seconds a step", "peak memory, GiB"], rows) + origin(name, content)


def step_loss(name: str) -> str:
    """What each option changes in the loss."""
    content = load(name)
    keys = ("loss", "image/loss", "scale0/loss", "scale1/loss", "scale2/loss")
    rows = [[row["what"], *(f"{row[key]:.6f}" for key in keys)] for row in content["result"]["loss"]]
    return table(["", "loss", "image", "scale 0", "scale 1", "scale 2"], rows) + origin(name, content)


def scaling(name: str) -> str:
    """Steps of several ranks, measured and predicted."""
    content = load(name)
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
    return table(head, rows) + origin(name, content)


def chaos(*names: str) -> str:
    """Trainings killed at random moments."""
    found = [name for name in names if (RESULTS / f"{name}.json").is_file()]
    if not found:
        raise FileNotFoundError(", ".join(names))
    rows = []
    for name in found:
        result = load(name)["result"]
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
    return table(head, rows) + "".join(origin(name, load(name)) for name in found)


def checkpoint_overhead(name: str) -> str:
    """What checkpoints cost."""
    content = load(name)
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
    return table(head, [row]) + origin(name, content)


def latency(name: str) -> str:
    """From submission to the first step on an idle Slurm."""
    content = load(name)
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
    return table(head, rows) + origin(name, content)
