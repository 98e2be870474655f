"""Static performance model: what the compiled loss kernels do per tile, and the time that this predicts.

`python -m tests.kernels.static` compiles the main bfloat16 kernels for three chips without a GPU, counts the instructions
of their inner loops, and prints a table; `--write` also updates `static.json`, which the tests read, for the Triton that
is imported. Another release is imported from a folder that comes first on `PYTHONPATH`, filled by
`pip install --no-deps --target DIR triton==3.6.0`. Nothing here is measured.

A block of ROWS rows visits tiles of COLUMNS columns. One tile takes, in clocks of a multiprocessor,

    tensor   matrix operations over the rate of the tensor cores
    mufu     32 lanes times exponentials and the like, over 16 a clock
    issue    instructions of all warps, over 4 a clock

The time is that of the greatest of the three if they overlap, and of tensor plus the greater of the other two if they do
not. The multiprocessor with the most blocks determines the whole.
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import triton

if __package__:
    from . import sass
    from .compiled import Kernel, build, shipped
else:
    import sass
    from compiled import Kernel, build, shipped

GOLDEN = Path(__file__).with_name("static.json")
ROWS = 65_536
"""Rows of the predictions: the marks are given for this number."""

WIDTHS = (64, 128, 256)
NAMES = ("log_sums", "weighted_negatives", "queue log_sums", "queue weighted_keys")


class Chip(NamedTuple):
    """Rates of one multiprocessor, and their number. From NVIDIA's data sheets and tuning guides."""

    name: str
    processors: int
    flop: int  # bfloat16 operations a clock
    gigahertz: float
    shared: int  # bytes of shared memory for all blocks


CHIPS = {
    80: Chip("A100", 108, 2048, 1.41, 164 * 1024),
    90: Chip("H100", 132, 4096, 1.755, 228 * 1024),
    100: Chip("B200", 148, 8192, 1.85, 228 * 1024),
}
MUFU_RATE, ISSUE_RATE = 16, 4
REGISTERS, WARPS = 65_536, 64
"""Of one multiprocessor."""


def selected(capability: int) -> Iterator[Kernel]:
    """The kernels of the table: bfloat16, plain sums where there is a choice, one rank."""
    for kernel in shipped(capability):
        name, _, rest = kernel.name.partition(" bfloat16 ")
        if name in NAMES and rest in [f"{width}{kind}" for width in WIDTHS for kind in ("", " plain")]:
            yield kernel


def products(kernel: Kernel) -> int:
    """Matrix products per tile."""
    return 2 if "weighted" in kernel.name else 1


def describe(kernel: Kernel, capability: int) -> dict[str, Any]:
    """Counts and clocks of one kernel on one chip."""
    code, chip = sass.read(build(kernel, capability)), CHIPS[capability]
    dense = min(code.loops, key=lambda x: (x.mufu, x.issue))
    masked = max(code.loops, key=lambda x: x.issue)
    rows, columns, width = (kernel.constants[name] for name in ("ROWS", "COLUMNS", "WIDTH"))
    needed = 2 * rows * columns * width * products(kernel)
    done = dense.matrix_flop * (kernel.warps // 4 if capability == 90 else kernel.warps) or needed
    return {
        "tile": [rows, columns, kernel.warps, kernel.stages],
        "registers": code.registers,
        "stack": code.stack,
        "shared": code.shared,
        "blocks": blocks_at_once(code, kernel.warps, chip),
        "matrix": dense.matrix,
        "repeated": done / needed,  # how often each product is computed
        "mufu": dense.mufu,
        "issue": dense.issue,
        "issue_masked": masked.issue,
        "shuffles": dense.shuffles,
        "barriers": dense.barriers,
        "clocks": {
            "tensor": done / chip.flop,
            "mufu": dense.mufu * kernel.warps * 32 / MUFU_RATE,
            "issue": dense.issue * kernel.warps / ISSUE_RATE,
        },
    }


def blocks_at_once(code: sass.Code, warps: int, chip: Chip) -> int:
    """Blocks that fit on a multiprocessor; 1 KiB of shared memory of each belongs to the system."""
    per_warp = math.ceil(code.registers * 32 / 256) * 256
    return min(REGISTERS // (per_warp * warps), chip.shared // (code.shared + 1024), WARPS // warps)


def predicted(row: dict[str, Any], capability: int, rows: int = ROWS) -> tuple[float, float]:
    """Milliseconds for `rows` rows against as many columns: overlapped, and not."""
    chip, clocks = CHIPS[capability], row["clocks"]
    tiles = rows / row["tile"][1]
    per_processor = math.ceil(rows / row["tile"][0] / chip.processors)
    scale = tiles * per_processor / (chip.gigahertz * 1e6)
    other = max(clocks["mufu"], clocks["issue"])
    return scale * max(clocks["tensor"], other), scale * (clocks["tensor"] + other)


def bound(row: dict[str, Any]) -> str:
    return str(max(row["clocks"], key=row["clocks"].__getitem__))


def version() -> str:
    """Release of the Triton that is installed, without the patch level."""
    return ".".join(triton.__version__.split(".")[:2])


def table(rows: dict[str, dict[str, Any]], capability: int) -> str:
    """Markdown of one chip."""
    lines = [
        "| kernel | tile, warps, stages | registers | blocks | MUFU | issue, masked | repeated | "
        "tensor / MUFU / issue, clocks | bound | ms, overlapped to not |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    prefix = f"sm_{capability} "
    for name, row in rows.items():
        if name.startswith(prefix):
            kernel, clocks, tile = name.removeprefix(prefix), row["clocks"], row["tile"]
            low, high = predicted(row, capability)
            lines.append(
                f"| {kernel.replace(' bfloat16', '')} | {tile[0]} x {tile[1]}, {tile[2]}, {tile[3]} | "
                f"{row['registers']} | {row['blocks']} | {row['mufu']} | {row['issue']}, {row['issue_masked']} | "
                f"{row['repeated']:.2g} | {clocks['tensor']:.0f} / {clocks['mufu']:.0f} / {clocks['issue']:.0f} | "
                f"{bound(row)} | {low:.2f} to {high:.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="update static.json")
    parser.add_argument(
        "--chip", type=int, choices=CHIPS, action="append", help="90 for an H100; default all"
    )
    arguments = parser.parse_args()
    rows = {}
    for capability in arguments.chip or CHIPS:
        for kernel in selected(capability):
            rows[f"sm_{capability} {kernel.name}"] = describe(kernel, capability)
        print(f"\nTriton {triton.__version__}, {CHIPS[capability].name}, {ROWS:,} rows\n")
        print(table(rows, capability), flush=True)
    if arguments.write:
        golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        golden[version()] = rows
        GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
