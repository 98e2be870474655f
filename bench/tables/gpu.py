"""Tables of the GPU results, one block per device: functions from a folder of results to text."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.gpu_results import BOTH, FORWARD, OURS, Device, devices, losses, median
from bench.tables.common import short, table

DTYPE = "bfloat16"
ROWS = 65_536
MIB, GIB = 2**20, 2**30

LOSS_MARKS_MS = {(64, 0): 3.0, (128, 0): 5.5, (256, 0): 11.0, (64, 4): 2.25, (128, 4): 4.125, (256, 4): 8.25}
"""Forward and backward at 65,536 rows on an H100, by width and number of groups."""


def loss(device: Device) -> str:
    """The loss at 65,536 rows, ours and the peers, fastest first."""
    rows = []
    for width in (64, 128, 256):
        for groups in (0, 4):
            found = list(losses(device, DTYPE, rows=ROWS, width=width, groups=groups))
            for name, entry in sorted(found, key=lambda pair: median(pair[1], BOTH) or float("inf")):
                rows.append(
                    [
                        str(width),
                        str(groups or "each pair its own"),
                        name,
                        _time(entry.get(FORWARD, entry)),
                        _time(entry.get(BOTH, {})),
                        _memory(entry.get(BOTH, {})),
                        _share(entry.get(BOTH, {})),
                        f"{entry['loss_error']:.1e}" if "loss_error" in entry else "",
                    ]
                )
    head = ["width", "groups", "implementation", "forward, ms", "forward + backward, ms", "memory, MiB"]
    return table([*head, "share of floor", "error of loss"], rows)


def sizes(device: Device) -> str:
    """Our loss over rows: time, memory, share of the floor."""
    shipped = device.result("patch-nt-xent").get("shipped")
    rows = [
        [
            f"{entry['rows']:,}",
            str(entry["width"]),
            str(entry["groups"] or "each pair its own"),
            entry["dtype"],
            _time(entry.get(FORWARD, entry)),
            _time(entry.get(BOTH, {})),
            _memory(entry.get(BOTH, {})),
            _share(entry.get(BOTH, {})),
        ]
        for entry in sorted(
            device.entries("patch-nt-xent", implementation=shipped),
            key=lambda e: (e["dtype"], e["width"], e["groups"], e["rows"]),
        )
    ]
    head = ["rows", "width", "groups", "dtype", "forward, ms", "forward + backward, ms", "memory, MiB"]
    return table([*head, "share of floor"], rows)


def sampling(device: Device) -> str:
    """Sampling, ours and the released loop."""
    rows = []
    for entry in device.entries("sample-similar", dtype=DTYPE, implementation="triton"):
        shape = {key: entry[key] for key in ("batch", "templates", "patches", "dtype")}
        loops = list(device.entries("sample-similar", implementation="released loop", **shape))
        rates = [e["ms_per_image"] for e in [*loops[:1], entry] if "ms_per_image" in e]
        rows.append(
            [
                str(entry["batch"]),
                str(entry["templates"]),
                f"{entry['patches']:,}",
                _time(entry),
                _memory(entry),
                _share(entry),
                f"{rates[0] / rates[1]:,.0f}x" if len(rates) == 2 else "",
            ]
        )
    head = [
        "images",
        "templates",
        "patches",
        "ms",
        "memory, MiB",
        "share of floor",
        "released loop, per image",
    ]
    return table(head, rows)


def queue(device: Device) -> str:
    """The queue loss, ours and the peers."""
    rows = []
    both = [(e["implementation"], e) for e in device.entries("queue-info-nce", dtype=DTYPE)]
    both += [(e["peer"], e) for e in device.entries("peers", task="queue", dtype=DTYPE) if FORWARD in e]
    for name, entry in sorted(both, key=lambda p: (-p[1]["rows"], p[1]["width"], median(p[1], BOTH) or 1e9)):
        rows.append(
            [
                f"{entry['rows']:,} x {entry['entries']:,}",
                str(entry["width"]),
                entry.get("labels", "hard"),
                name,
                _time(entry.get(FORWARD, entry)),
                _time(entry.get(BOTH, {})),
                _memory(entry.get(BOTH, {})),
                _share(entry.get(BOTH, {})),
            ]
        )
    head = ["queries x entries", "width", "labels", "implementation", "forward, ms", "forward + backward, ms"]
    return table([*head, "memory, MiB", "share of floor"], rows)


def step(device: Device) -> str:
    """A whole pretraining step."""
    unfinished = device.result("step").get("unfinished", [])
    rows = [
        [
            form,
            f"{found['images_per_second']:,.0f}",
            f"{found['peak_bytes'] / GIB:.2f}",
            f"{found['largest_images']:,}" + " or more" * (form in unfinished),
            f"{found['largest_images_per_second']:,.0f}",
            f"{found['most_images_per_second']:,.0f}",
            f"{found['speedup_small']:.1f}x / {found['speedup_best']:.1f}x"
            if "speedup_small" in found
            else "",
        ]
        for form, found in device.result("step").get("summary", {}).items()
    ]
    head = ["", "images/s at 9", "GiB at 9", "largest batch", "images/s there", "fastest images/s"]
    return table([*head, "faster, at 9 / at best"], rows)


def pretraining(device: Device) -> str:
    """Real pretraining over batch sizes."""
    rows = [
        [
            str(e["batch_size"]),
            e["precision"],
            f"{e['images_per_second']:,.0f}" if "images_per_second" in e else e["failed"],
            f"{e['peak_mb'] / 1024:.1f}" if "peak_mb" in e else "",
        ]
        for e in device.entries("pretrain")
    ]
    return table(["batch", "precision", "images/s", "peak memory, GiB"], rows)


def absent(device: Device) -> str:
    """Peers that were not measured, and why; and what the measured ones do differently."""
    rows, seen = [], set()
    for entry in device.entries("peers"):
        key = (entry["peer"], entry["task"], entry.get("skipped"), entry.get("failed"))
        if key in seen:
            continue
        seen.add(key)
        where = f" at {entry['rows']:,} x {entry['width']}" if "failed" in entry and "rows" in entry else ""
        outcome = entry.get("skipped") or entry.get("failed", "measured") + where
        rows.append(
            [entry["peer"], entry.get("version", ""), entry["task"], outcome, entry.get("differs", "")]
        )
    return table(["peer", "version", "task", "outcome", "what it does differently"], rows)


def marks(device: Device) -> str:
    """What was aimed at, on an H100 unless said otherwise, and what was measured."""
    rows: list[list[str]] = []
    shipped = device.result("patch-nt-xent").get("shipped")
    for (width, groups), mark in LOSS_MARKS_MS.items():
        where = {"rows": ROWS, "width": width, "groups": groups}
        time = median(
            next(device.entries("patch-nt-xent", implementation=shipped, dtype=DTYPE, **where), {}), BOTH
        )
        what = f"loss, 65,536 rows, width {width}, {'four groups' if groups else 'each pair its own group'}"
        rows.append([what, f"{mark:g} ms", _or_not(time, "{:.2f} ms"), _verdict(time, at_most=mark)])
        rivals = [median(entry, BOTH) for name, entry in losses(device, DTYPE, **where) if name not in OURS]
        others = [other for other in rivals if other is not None]
        if others:
            best = min(others)
            rows.append(
                [
                    f"{what}: the fastest peer",
                    "slower than ours",
                    f"{best:.2f} ms",
                    _verdict(time, at_most=best),
                ]
            )
    large = next(
        device.entries(
            "patch-nt-xent", implementation=shipped, rows=1_048_576, width=64, groups=0, dtype=DTYPE
        ),
        {},
    )
    peak = large.get(BOTH, {}).get("peak_bytes")
    rows.append(
        ["loss, 1,048,576 rows, width 64: memory", "2 GiB", _or_not(peak and peak / GIB, "{:.2f} GiB"),
         _verdict(peak, at_most=2 * GIB)]
    )  # fmt: skip
    ours = [
        e for e in device.entries("sample-similar", implementation="triton", dtype=DTYPE)
        if e["patches"] >= 35_344 and e["batch"] == 256 and "share_of_floor" in e
    ]  # fmt: skip
    share = min((e["share_of_floor"] for e in ours), default=None)
    rows.append(
        ["sampling, 256 images, 35,344 patches and more: share of floor", "50%", _or_not(share, "{:.0%}"),
         _verdict(share, at_least=0.5)]
    )  # fmt: skip
    small = {"batch": 8, "templates": 64, "patches": 35_344}
    pair = [
        next(device.entries("sample-similar", implementation=name, dtype=DTYPE, **small), {}).get(
            "ms_per_image"
        )
        for name in ("released loop", "triton")
    ]
    ratio = pair[0] / pair[1] if pair[0] and pair[1] else None
    rows.append(
        ["sampling, 8 images, 64 templates: released loop / ours", "100x", _or_not(ratio, "{:,.0f}x"),
         _verdict(ratio, at_least=100)]
    )  # fmt: skip
    summary = device.result("step").get("summary", {})
    speedup = max((found.get("speedup_best", 0.0) for found in summary.values()), default=0.0) or None
    rows.append(
        ["whole step, images per second: ours / released, best batches", "10x", _or_not(speedup, "{:.1f}x"),
         _verdict(speedup, at_least=10)]
    )  # fmt: skip
    return table(["", "mark", "measured", "reached"], rows)


GPU_TABLES: dict[str, tuple[str, Callable[[Device], str]]] = {
    "gpu-marks": ("patch-nt-xent", marks),
    "gpu-loss": ("patch-nt-xent", loss),
    "gpu-loss-sizes": ("patch-nt-xent", sizes),
    "gpu-sampling": ("sample-similar", sampling),
    "gpu-queue": ("queue-info-nce", queue),
    "gpu-peers": ("peers", absent),
    "gpu-step": ("step", step),
    "gpu-pretrain": ("pretrain", pretraining),
}
"""Each table's name, the part that it cannot do without, and how it is made."""


def device_tables(name: str, folder: Path) -> str:
    """A table for every device with results; raises FileNotFoundError where there is none."""
    part, make = GPU_TABLES[name]
    found = [device for device in devices(folder) if part in device]
    if not found:
        raise FileNotFoundError(name)
    return "\n\n".join(f"{device.name}:\n\n{make(device)}{_origin(device, part)}" for device in found)


def _origin(device: Device, part: str) -> str:
    content = device.contents[part]
    versions = content["versions"]
    triton = f", Triton {versions['triton']}" if "triton" in versions else ""
    return (
        f"\n\n`bench/results/gpu-{device.slug}-{part}.json`: torch {versions['torch']}{triton}, "
        f"{content['date'][:10]}, commit {short(content['commit'])}; `{content['command']}`"
    )


def _time(found: dict[str, Any]) -> str:
    return f"{found['median_ms']:,.2f}" if "median_ms" in found else str(found.get("failed", ""))


def _memory(found: dict[str, Any]) -> str:
    return f"{found['peak_bytes'] / MIB:,.1f}" if "peak_bytes" in found else ""


def _share(found: dict[str, Any]) -> str:
    return f"{found['share_of_floor']:.0%}" if "share_of_floor" in found else ""


def _or_not(value: float | None, form: str) -> str:
    return "not measured" if value is None else form.format(value)


def _verdict(value: float | None, *, at_most: float = math.inf, at_least: float = -math.inf) -> str:
    return "" if value is None else "yes" if at_least <= value <= at_most else "no"
