"""Machine code of a compiled kernel: its instructions, its innermost loops, and its resources."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import triton

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
"""nvdisasm and cuobjdump, which Triton contains."""

MATRIX = ("HGMMA", "HMMA", "UTCHMMA")
"""Matrix instructions of compute capability 9.0 (by a warp group of 4 warps), 8.x (by a warp) and 10.0 (by one thread)."""


class Loop(NamedTuple):
    """Number of instructions of one pass through an innermost loop, of one warp."""

    issue: int
    mufu: int  # exponentials, logarithms, reciprocals
    matrix: int
    matrix_flop: (
        int  # of all lanes; of one warp group with HGMMA; 0 where the instruction does not state its shape
    )
    shuffles: int
    barriers: int


class Code(NamedTuple):
    """One kernel on one chip."""

    loops: list[Loop]  # in order of address
    registers: int
    stack: int  # bytes per thread: spilled registers
    shared: int  # bytes per block


def read(compiled: Any) -> Code:
    """`Code` of a kernel that `triton.compile` returned."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        listing = _run("nvdisasm", "-c", file.name)
        usage = _run("cuobjdump", "-res-usage", file.name)
    registers, stack = (int(re.findall(rf"{name}:(\d+)", usage)[0]) for name in ("REG", "STACK"))
    return Code(loops(listing), registers, stack, compiled.metadata.shared)


def loops(listing: str) -> list[Loop]:
    """Innermost loops with matrix products: code from a label to a jump back to it, without another such jump inside."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    jumps: list[tuple[int, int]] = []
    for line in listing.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?);?\s*(?:/\*.*)?$", line):
            text = re.sub(r"^@!?U?P\w+\s+", "", found[1])
            target = re.match(r"BRA[^`]*`\((\.L_x_\d+)\)", text)
            instructions.append(text)
            if target and target[1] in labels and labels[target[1]] < len(instructions) - 1:
                jumps.append((labels[target[1]], len(instructions)))
    inner = [
        (first, last)
        for first, last in jumps
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in jumps)
    ]
    found_loops = [_counted(instructions[first:last]) for first, last in sorted(inner)]
    return [loop for loop in found_loops if loop.matrix]


def _counted(instructions: list[str]) -> Loop:
    names = [text.split()[0] for text in instructions]
    matrix = [name for name in names if name.split(".")[0] in MATRIX]

    def number(*starts: str) -> int:
        return sum(name.startswith(starts) for name in names)

    return Loop(
        len(names), number("MUFU"), len(matrix), sum(map(_flop, matrix)), number("SHFL"), number("BAR")
    )


def _flop(name: str) -> int:
    if shape := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)", name):
        m, n, k = map(int, shape.groups())
        return 2 * m * n * k
    if shape := re.match(r"HMMA\.(\d{2})(8)(\d+)", name):
        m, n, k = map(int, shape.groups())
        return 2 * m * n * k
    return 0


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout
