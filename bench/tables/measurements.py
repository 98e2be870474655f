"""Tables of single measurements: archives, synthetic alloys, operations, training."""

from __future__ import annotations

from statistics import fmean

from bench.tables.common import RESULTS, load, origin, table


def archive_rate(name: str) -> str:
    """Random windows per second by compression."""
    content = load(name)
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
    return table(head, rows) + origin(name, content)


def archive_scale(name: str) -> str:
    """Costs of an archive over the number of small images."""
    content = load(name)
    result = content["result"]
    costs = {
        "bytes_per_pixel": ("file / pixels", "{:.2f}"),
        "write_cpu_s": ("write, s", "{:.1f}"),
        "open_cpu_s": ("open, s", "{:.3f}"),
        "first_batch_cpu_s": ("first batch, s", "{:.3f}"),
        "reader_private_MB": ("private memory of a reader, MB", "{:.0f}"),
        "add_cpu_s": ("add 10 images, s", "{:.2f}"),
        "add_written_MB": ("written for these, MB", "{:.1f}"),
        "check_cpu_s": ("check, s", "{:.1f}"),
        "check_s": ("check, s of wall time, beside other programs", "{:.0f}"),
        "check_peak_MB": ("memory of check, MB", "{:.0f}"),
        "copies_placed": ("rotated copies placed", "{:,}"),
        "copies_found": ("of these found", "{:,}"),
        "findings": ("findings", "{:,}"),
    }
    rows = [
        [
            label,
            *(shape.format(size[key]) if key in size else "-" for size in result["sizes"]),
            f"{result['exponents'][key]:.2f}" if key in result["exponents"] else "-",
        ]
        for key, (label, shape) in costs.items()
        if any(key in size for size in result["sizes"])
    ]
    head = [
        "seconds of processor time",
        *(f"{size['images']:,} images" for size in result["sizes"]),
        "exponent",
    ]
    return table(head, rows) + origin(name, content)


def crop_rates(name: str) -> str:
    """128 px crops per second by file format."""
    content = load(name)
    rates = content["result"]["once"]["crops_per_cpu_s"]
    return table(list(rates), [[f"{rate:,}" for rate in rates.values()]]) + origin(name, content)


def synthetic(name: str) -> str:
    """Class shares, and the best Dice by grey level only."""
    content = load(name)
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
    return table(head, rows) + origin(name, content)


def demo(name: str) -> str:
    """Scores of the demo on its test splits."""
    content = load(name)
    rows, classes = [], []
    for model, splits in content["result"]["models"].items():
        for split, found in splits.items():
            classes = list(found["dice"])
            scores = (found["mean_dice"], *found["dice"].values())
            rows.append([model, split, str(found["images"]), *(f"{score:.2f}" for score in scores)])
    return table(["model", "split", "images", "mean Dice", *classes], rows) + origin(name, content)


def kernels(name: str, form: str = "chunked") -> str:
    """Time and memory of an operation on a CPU, ours and other forms."""
    content = load(name)
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
    shape = ", ".join(f"{_shown(key)} {value}" for key, value in content["result"]["shape"].items())
    head = ["form", "median, ms of CPU time", "peak memory, MB", f"{form} / it, time", f"{form} / it, memory"]
    return f"{shape}:\n\n" + table(head, rows) + origin(name, content)


def _shown(key: str) -> str:
    """An entry of a shape in words; files recorded before some were renamed have the old names."""
    renamed = {"cells_per_image": "patches_per_image", "conditions": "subgroups"}
    return renamed.get(key, key).replace("_", " ")


def peers(name: str) -> str:
    """Both losses and their peers on a CPU, fastest first."""
    content = load(name)
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
    return f"{shape}:\n\n" + table(head, rows) + origin(name, content)


def step(name: str) -> str:
    """One step, ours and the released code."""
    content = load(name)
    result = content["result"]
    released = result["best_cpu_seconds"]["released"], result["peak_mb"]["released"]
    rows = []
    for label, key in (
        ("released code", "released"),
        ("pscl_hpc, float32", "ours"),
        ("pscl_hpc, bfloat16", "ours, bfloat16"),
    ):
        seconds, memory = result["best_cpu_seconds"][key], result["peak_mb"][key]
        rows.append([
            label, f"{seconds:.1f}", f"{released[0] / seconds:.1f}x", f"{memory / 1024:.2f}", f"{memory / released[1]:.2f}"
        ])  # fmt: skip
    head = ["", "CPU seconds a step", "faster", "peak memory, GiB", "of the released"]
    return table(head, rows) + origin(name, content)


def step_loss(name: str) -> str:
    """Effect of each option on the loss."""
    content = load(name)
    keys = ("loss", "image/loss", "scale0/loss", "scale1/loss", "scale2/loss")
    rows = [[row["what"], *(f"{row[key]:.6f}" for key in keys)] for row in content["result"]["loss"]]
    return table(["", "loss", "image", "scale 0", "scale 1", "scale 2"], rows) + origin(name, content)


def scaling(name: str) -> str:
    """Seconds per step on several ranks, measured and predicted."""
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
    """Cost of checkpoints."""
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


def large_batch(name: str) -> str:
    """Memory and time of a batch in parts with the loss of the whole batch."""
    content = load(name)
    result = content["result"]
    rows = []
    for row in result["rows"]:
        whole, exact = row.get("whole"), row["exact"]
        ratio = f"{exact['cpu_seconds'] / whole['cpu_seconds']:.2f}" if whole else "-"
        once = (f"{whole['growth_mb']:.0f}", f"{whole['cpu_seconds']:.2f}") if whole else ("-", "-")
        parts = f"{exact['growth_mb']:.0f}", f"{exact['cpu_seconds']:.2f}"
        rows.append([row["method"], str(row["batch"]), *once, *parts, ratio])
    each = f"parts of {result['part']}"
    head = ["method", "images", "at once: MB", "CPU s", f"{each}: MB", "CPU s", "time, parts / at once"]
    return table(head, rows) + origin(name, content)


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


def suggestion(name: str) -> str:
    """Dice by the image that each rule suggests from ImageNet features, and its rank among all training images."""
    content = load(name)
    rows, rules = [], list(content["result"]["datasets"][0]["orders"]["imagenet"])
    for found in content["result"]["datasets"]:
        splits = [split for split in next(iter(found["images"][0]["dice"].values())) if split != "rest"]
        for split in splits:
            for kind in found["images"][0]["dice"]:
                dice = {row["image"]: row["dice"][kind][split] for row in found["images"]}
                cells = []
                for rule in rules:
                    value = dice[found["orders"]["imagenet"][rule][0]]
                    rank = 1 + sum(other > value for other in dice.values())
                    cells.append(f"{value:.3f} ({rank} of {len(dice)})")
                ends = [
                    f"{value:.3f}" for value in (fmean(dice.values()), min(dice.values()), max(dice.values()))
                ]
                rows.append([f"{found['dataset']} {split}", kind, *ends, *cells])
    head = ["images", "pixel classifier", "mean of all", "worst", "best", *rules]
    return table(head, rows) + origin(name, content)
