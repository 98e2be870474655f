"""Figures of the GPU results: time and memory of the loss over rows, ours and the peers.

    python -m bench.plots FOLDER

Writes `gpu-<device>-loss.png` into FOLDER for each device with results.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from bench.gpu_results import BOTH, Device, devices

QUANTITIES = {"median_ms": ("milliseconds", 1.0), "peak_bytes": ("MiB beyond the inputs", 2.0**20)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", help=argparse.SUPPRESS)  # gpu.sh passes these to every part
    parser.add_argument("--seconds", help=argparse.SUPPRESS)
    for path in draw(parser.parse_args().folder):
        print(path)


def draw(folder: Path) -> list[Path]:
    """Draw the figure of each device that has measured the loss; their paths."""
    made = []
    for device in devices(folder, dry=True):
        if any(device.entries("patch-nt-xent")):
            figure = loss(device)
            made.append(folder / f"gpu-{device.slug}-loss.png")
            figure.savefig(made[-1], dpi=150)
            plt.close(figure)
    return made


def loss(device: Device) -> Figure:
    """Forward and backward where each pair is its own group: time above, memory below, a column for each width."""
    dtype = next(device.entries("patch-nt-xent"))["dtype"]
    found = list(device.losses(dtype=dtype, groups=0))
    widths = sorted({entry["width"] for _, entry in found})
    names = dict.fromkeys(name for name, _ in found)
    colours = {name: matplotlib.colormaps["tab20"](index % 20) for index, name in enumerate(names)}
    size = (2 + 3.8 * len(widths), 8)
    figure, panels = plt.subplots(
        2, len(widths), figsize=size, sharey="row", squeeze=False, layout="constrained"
    )
    lines = {}
    for axes_of_row, (key, (unit, divisor)) in zip(panels, QUANTITIES.items(), strict=True):
        axes_of_row[0].set_ylabel(unit)
        for axes, width in zip(axes_of_row, widths, strict=True):
            for name, colour in colours.items():
                points = sorted(
                    (entry["rows"], entry[BOTH][key] / divisor)
                    for other, entry in found
                    if (other, entry["width"]) == (name, width) and key in entry.get(BOTH, {})
                )
                if points:
                    weight = 2.6 if name.startswith("triton") else 1.2
                    rows, values = zip(*points, strict=True)
                    [lines[name]] = axes.plot(rows, values, color=colour, marker="o", lw=weight)
            axes.set(title=f"width {width}", xlabel="rows", yscale="log")
            axes.set_xscale("log", base=2)
            axes.grid(alpha=0.25, lw=0.6)
    figure.legend(lines.values(), lines.keys(), loc="outside right center", frameon=False, fontsize=8)
    warning = " (a dry run: these numbers mean nothing)" if device.dry else ""
    figure.suptitle(f"Forward and backward of the loss, {dtype}: {device.name}{warning}", fontsize=11)
    return figure


if __name__ == "__main__":
    main()
