"""Tables of the GPU results, one block per device: functions from a device's results to text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.gpu_results import BOTH, FORWARD, Device, devices, median
from bench.tables.common import short, table

DTYPE = "bfloat16"
ROWS = 65_536
MIB, GIB = 2**20, 2**30

TIMES = ["forward, ms", "forward + backward, ms", "memory, MiB", "share of floor"]

LOSS_TARGETS_MS = {
    (64, 0): 3.0,
    (128, 0): 5.5,
    (256, 0): 11.0,
    (64, 4): 2.25,
    (128, 4): 4.125,
    (256, 4): 8.25,
}
"""Forward and backward at 65,536 rows on an H100, by width and number of groups."""


def loss(device: Device) -> str:
    """The loss at 65,536 rows, ours and the peers, fastest first."""
    found = device.losses(dtype=DTYPE, rows=ROWS)
    ranked = sorted(found, key=lambda pair: (*_size(pair[1]), median(pair[1]) or float("inf")))
    rows = [
        [*_labels(entry), name, *_times(entry), f"{entry['loss_error']:.1e}" if "loss_error" in entry else ""]
        for name, entry in ranked
    ]
    return table(["width", "groups", "implementation", *TIMES, "error of loss"], rows)


def sizes(device: Device) -> str:
    """Our loss over rows."""
    found = device.entries("patch-nt-xent", implementation="triton")
    rows = [
        [f"{entry['rows']:,}", *_labels(entry), entry["dtype"], *_times(entry)]
        for entry in sorted(found, key=lambda e: (e["dtype"], *_size(e), e["rows"]))
    ]
    return table(["rows", "width", "groups", "dtype", *TIMES], rows)


def queue(device: Device) -> str:
    """The queue loss, ours and the peers."""
    found = [(e["implementation"], e) for e in device.entries("queue-info-nce", dtype=DTYPE)]
    found += [(e["peer"], e) for e in device.entries("peers", task="queue", dtype=DTYPE) if FORWARD in e]
    found.sort(key=lambda pair: (-pair[1]["rows"], pair[1]["width"], median(pair[1]) or float("inf")))
    rows = [
        [f"{e['rows']:,} x {e['entries']:,}", str(e["width"]), e.get("labels", "hard"), name, *_times(e)]
        for name, e in found
    ]
    return table(["queries x entries", "width", "labels", "implementation", *TIMES], rows)


def sampling(device: Device) -> str:
    """Sampling, ours and the released loop."""
    rows = []
    for entry in device.entries("sample-similar", dtype=DTYPE, implementation="triton"):
        shape = {key: entry[key] for key in ("batch", "templates", "patches")}
        ratio = _loop_over_ours(device, **shape)
        rows.append(
            [
                *(f"{value:,}" for value in shape.values()),
                _time(entry),
                _memory(entry),
                _share(entry),
                f"{ratio:,.0f}x" if ratio else "",
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


def step(device: Device) -> str:
    """A whole pretraining step."""
    rows = [
        [
            form,
            f"{found['images_per_second']:,.0f}",
            f"{found['peak_bytes'] / GIB:.2f}",
            f"{found['largest_images']:,}",
            f"{found['largest_images_per_second']:,.0f}",
            f"{found['most_images_per_second']:,.0f}",
            "{speedup_small:.1f}x / {speedup_best:.1f}x".format(**found) if "speedup_small" in found else "",
        ]
        for form, found in device.result("step").get("summary", {}).items()
    ]
    head = [
        "",
        "images/s at 9",
        "GiB at 9",
        "largest batch measured",
        "images/s at largest",
        "fastest images/s",
    ]
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


def peers(device: Device) -> str:
    """Outcome of each peer, and what it computes differently."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for e in device.entries("peers"):
        outcome = e.get("skipped") or e.get("failed")
        where = f" at {e['rows']:,} x {e['width']}" if "failed" in e else ""
        found = f"{outcome}{where}" if outcome else "measured"
        row = [e["peer"], e.get("version", ""), e["task"], found, e.get("differs", "")]
        rows.setdefault((e["peer"], e["task"], outcome or ""), row)
    return table(["peer", "version", "task", "outcome", "what it does differently"], list(rows.values()))


def targets(device: Device) -> str:
    """What was aimed at, on an H100 unless said otherwise, and what was measured."""
    rows = []
    ours = {"implementation": "triton", "dtype": DTYPE}
    for (width, groups), target in LOSS_TARGETS_MS.items():
        where = {"rows": ROWS, "width": width, "groups": groups}
        time = median(device.first("patch-nt-xent", **ours, **where))
        what = f"loss, 65,536 rows, width {width}, {'four groups' if groups else 'each pair its own group'}"
        rows.append([what, f"{target:g} ms", *_verdict(time, "{:.2f} ms", at_most=target)])
        rivals = [median(entry) for entry in device.entries("peers", task="loss", dtype=DTYPE, **where)]
        if best := min((rival for rival in rivals if rival is not None), default=None):
            _, reached = _verdict(time, "{:.2f} ms", at_most=best)
            rows.append([f"{what}: the fastest peer", "slower than ours", f"{best:.2f} ms", reached])
    large = device.first("patch-nt-xent", rows=1_048_576, width=64, groups=0, **ours)
    peak = large.get(BOTH, {}).get("peak_bytes")
    memory = _verdict(None if peak is None else peak / GIB, "{:.2f} GiB", at_most=2)
    rows.append(["loss, 1,048,576 rows, width 64: memory", "2 GiB", *memory])
    sampled = device.entries("sample-similar", implementation="triton", dtype=DTYPE, batch=256)
    shares = [e["share_of_floor"] for e in sampled if e["patches"] >= 35_344 and "share_of_floor" in e]
    share = _verdict(min(shares, default=None), "{:.0%}", at_least=0.5)
    rows.append(["sampling, 256 images, 35,344 patches and more: share of floor", "50%", *share])
    ratio = _verdict(_loop_over_ours(device, batch=8, templates=64, patches=35_344), "{:,.0f}x", at_least=100)
    rows.append(["sampling, 8 images, 64 templates: released loop / ours", "100x", *ratio])
    summary = device.result("step").get("summary", {}).values()
    speedups = [found["speedup_best"] for found in summary if "speedup_best" in found]
    speedup = _verdict(max(speedups, default=None), "{:.1f}x", at_least=10)
    rows.append(["whole step, images per second: ours / released, best batches", "10x", *speedup])
    return table(["", "target", "measured", "reached"], rows)


GPU_TABLES: dict[str, tuple[str, Callable[[Device], str]]] = {
    "gpu-targets": ("patch-nt-xent", targets),
    "gpu-loss": ("patch-nt-xent", loss),
    "gpu-loss-sizes": ("patch-nt-xent", sizes),
    "gpu-sampling": ("sample-similar", sampling),
    "gpu-queue": ("queue-info-nce", queue),
    "gpu-peers": ("peers", peers),
    "gpu-step": ("step", step),
    "gpu-pretrain": ("pretrain", pretraining),
}
"""Each table's name, the part that it needs, and the function that makes it."""


def device_tables(name: str, folder: Path) -> str:
    """A table for every device with results; raises FileNotFoundError if there is none."""
    part, make = GPU_TABLES[name]
    found = [device for device in devices(folder) if part in device.contents]
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


def _loop_over_ours(device: Device, **shape: object) -> float | None:
    """Milliseconds per image of the released loop over ours; None if one was not measured."""
    loop, ours = (
        device.first("sample-similar", implementation=name, dtype=DTYPE, **shape).get("ms_per_image")
        for name in ("released loop", "triton")
    )
    return loop / ours if loop and ours else None


def _size(entry: dict[str, Any]) -> tuple[int, int]:
    return entry["width"], entry["groups"]


def _labels(entry: dict[str, Any]) -> list[str]:
    return [str(entry["width"]), str(entry["groups"] or "each pair its own")]


def _times(entry: dict[str, Any]) -> list[str]:
    """The columns `TIMES` of a loss; the reason if it failed."""
    both = entry.get(BOTH, {})
    return [_time(entry.get(FORWARD, entry)), _time(both), _memory(both), _share(both)]


def _time(found: dict[str, Any]) -> str:
    return f"{found['median_ms']:,.2f}" if "median_ms" in found else str(found.get("failed", ""))


def _memory(found: dict[str, Any]) -> str:
    return f"{found['peak_bytes'] / MIB:,.1f}" if "peak_bytes" in found else ""


def _share(found: dict[str, Any]) -> str:
    return f"{found['share_of_floor']:.0%}" if "share_of_floor" in found else ""


def _verdict(
    value: float | None, form: str, *, at_most: float = float("inf"), at_least: float = float("-inf")
) -> list[str]:
    """The value as text, and whether it is within the limits."""
    if value is None:
        return ["not measured", ""]
    return [form.format(value), "yes" if at_least <= value <= at_most else "no"]
