"""Pictures of the GPU results, from their files alone.

    python -m bench.plots FOLDER

Writes into FOLDER, for each device: `gpu-<device>-time.png` (time against rows), `gpu-<device>-memory.png` (memory
against rows) and `gpu-<device>-roofline.png` (rates under the card's own measured ceilings).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bench.gpu_results import BOTH, FORWARD, Device, devices, losses

COLOURS = (
    "#0b6e99", "#d1495b", "#66a182", "#edae49", "#8d6a9f", "#5c6b73", "#c56b26", "#2e4057", "#a3b18a", "#b56576",
    "#3d9970", "#7f7f7f", "#17becf", "#9467bd",
)  # fmt: skip

MARKERS = "osD^vPX"

MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", help=argparse.SUPPRESS)  # what gpu.sh hands to every part
    parser.add_argument("--seconds", help=argparse.SUPPRESS)
    folder = parser.parse_args().folder
    for path in draw(folder):
        print(path)


def draw(folder: Path) -> list[Path]:
    """Draw every picture that the results in `folder` allow; their paths."""
    made = []
    for device in devices(folder, tiny=True):
        if "patch-nt-xent" not in device:
            continue
        pictures = {"time": time(device), "memory": memory(device)}
        if "copy_bytes_per_second" in device.result("ceilings"):
            pictures["roofline"] = roofline(device)
        for name, figure in pictures.items():
            path = folder / f"gpu-{device.slug}-{name}.png"
            figure.savefig(path, dpi=150)
            plt.close(figure)
            made.append(path)
    return made


def time(device: Device) -> Figure:
    """Forward and backward of the loss against rows, by width, for pairs of their own group."""

    def floor(axes: Axes, entries: list[dict[str, Any]]) -> None:
        points = {e["rows"]: e[BOTH]["floor_ms"] for e in entries if "floor_ms" in e.get(BOTH, {})}
        if points:
            axes.plot(
                *zip(*sorted(points.items()), strict=True),
                color="black",
                lw=1,
                ls=":",
                label="floor, row by row",
            )

    return _against_rows(device, "median_ms", "ms", "Forward and backward of the loss", floor)


def memory(device: Device) -> Figure:
    """Peak memory of the same, beyond inputs."""
    return _against_rows(
        device, "peak_bytes", "MiB", "Memory of forward and backward, beyond the inputs", None, MIB
    )


def _against_rows(
    device: Device,
    key: str,
    unit: str,
    title: str,
    more: Callable[[Axes, list[dict[str, Any]]], None] | None,
    divisor: float = 1.0,
) -> Figure:
    dtype = _dtype(device)
    found = list(losses(device, dtype, groups=0))
    widths = sorted({entry["width"] for _, entry in found})
    names = list(dict.fromkeys(name for name, _ in found))
    figure, panels = plt.subplots(
        1,
        len(widths),
        figsize=(1.8 + 3.8 * len(widths), 4.6),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, width in zip(panels[0], widths, strict=True):
        for index, name in enumerate(names):
            points = sorted(
                (entry["rows"], entry[BOTH][key] / divisor)
                for other, entry in found
                if other == name and entry["width"] == width and key in entry.get(BOTH, {})
            )
            ours = name.startswith("triton")
            if points:
                axes.plot(
                    *zip(*points, strict=True), color=COLOURS[index % len(COLOURS)], marker="o", ms=5 if ours else 3.5,
                    lw=2.6 if ours else 1.2, zorder=3 if ours else 2, label=name,
                )  # fmt: skip
        if more is not None:
            more(axes, [e for n, e in found if e["width"] == width and n == "triton, row"])
        axes.set(xscale="log", yscale="log", title=f"width {width}", xlabel="rows")
        axes.set_xscale("log", base=2)
        axes.grid(alpha=0.25, lw=0.6)
    panels[0][0].set_ylabel(unit)
    labels: dict[str, Any] = {}
    for axes in panels[0]:
        handles, texts = axes.get_legend_handles_labels()
        labels |= dict(zip(texts, handles, strict=True))
    figure.legend(labels.values(), labels.keys(), loc="outside right center", frameon=False, fontsize=8)
    figure.suptitle(f"{title}, {dtype}: {device.name}{_warning(device)}", fontsize=11)
    return figure


def roofline(device: Device) -> Figure:
    """Rate of the loss and of sampling against what binds them.

    Both losses do products and exponentials side by side: their ceiling rises with the operations per exponential until
    the products bind. Sampling reads patches and multiplies: its ceiling rises with the operations per byte.
    """
    ceiling = device.result("ceilings")
    flops = ceiling["flops_per_second"] / 1e12
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5.4), layout="constrained")
    _roofline(left, flops, ceiling["exponentials_per_second"] / 1e12, _loss_points(device))
    left.set(title="loss", xlabel="operations per exponential", ylabel="Tera operations per second")
    _roofline(right, flops, ceiling["copy_bytes_per_second"] / 1e12, _sampling_points(device))
    right.set(title="sampling", xlabel="operations per byte")
    figure.suptitle(f"Against the measured ceilings: {device.name}{_warning(device)}", fontsize=11)
    return figure


Point = tuple[str, float, float]
"""What it is, operations per exponential or byte, Tera operations per second."""


def _roofline(axes: Axes, flat: float, slope: float, points: list[Point]) -> None:
    """Points, coloured by what they are, under the ceiling min(flat, slope x)."""
    corner = flat / slope
    places = [corner, *(x for _, x, _ in points)]
    low, high = min(places) / 2, max(places) * 2
    axes.plot([low, corner, high], [slope * low, flat, flat], color="black", lw=1.2, label="ceiling")
    for index, name in enumerate(dict.fromkeys(name for name, _, _ in points)):
        own = [(x, y) for other, x, y in points if other == name]
        axes.plot(
            *zip(*own, strict=True), marker=MARKERS[index % len(MARKERS)], ls="none", ms=7, alpha=0.9,
            color=COLOURS[index % len(COLOURS)], label=name,
        )  # fmt: skip
    axes.set(xscale="log", yscale="log")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(alpha=0.25, lw=0.6)
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)


def _loss_points(device: Device) -> list[Point]:
    """Our loss at 65,536 rows, or the most measured below that."""
    found = []
    rows = {e["rows"] for e in device.entries("patch-nt-xent")}
    large = min(65_536, max(rows, default=0))
    for entry in device.entries("patch-nt-xent", dtype=_dtype(device), rows=large, groups=0):
        if entry["implementation"] == "chunked":
            continue
        halved = entry["implementation"].endswith("symmetric")
        pairs, width = float(entry["rows"]) ** 2, entry["width"]
        parts = {
            FORWARD: (2 * pairs * width * (0.5 if halved else 1), pairs * (0.5 if halved else 1)),
            BOTH: (2 * pairs * width * (2.5 if halved else 3), pairs * (1.5 if halved else 2)),
        }
        for what, (operations, exponentials) in parts.items():
            if "median_ms" in entry[what]:
                rate = operations / entry[what]["median_ms"] / 1e9
                found.append((f"{entry['implementation']}, {what}", operations / exponentials, rate))
    return found


def _sampling_points(device: Device) -> list[Point]:
    """Our sampling at the largest batch, by patches of an image."""
    found = []
    batch = max((e["batch"] for e in device.entries("sample-similar")), default=0)
    for entry in device.entries("sample-similar", dtype=_dtype(device), implementation="triton", batch=batch):
        if "median_ms" in entry:
            numbers = float(entry["batch"]) * entry["patches"] * entry["width"]
            rate = 2 * numbers * entry["templates"] / entry["median_ms"] / 1e9
            found.append((f"{entry['patches']:,} patches", float(entry["templates"]), rate))
    return found


def _dtype(device: Device) -> str:
    """The first dtype measured: bfloat16 on a GPU."""
    return next((entry["dtype"] for entry in device.entries("patch-nt-xent")), "bfloat16")


def _warning(device: Device) -> str:
    return " (a dry run: these numbers mean nothing)" if device.tiny else ""


if __name__ == "__main__":
    main()
