"""Compiles the main configurations of the Triton kernels for several chips, without needing a GPU.

Rows of bfloat16 and float32 at representative widths; labels of all kinds; sampling from images of up to 65,536 patches
in contiguous rows. `python compiled.py` prints the table of registers, spills and shared memory; `--write` updates
`compiled.json`, which the tests read; only kernels that have changed since are compiled.
"""

import argparse
import ast
import functools
import hashlib
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from pscl_kernels.backends import TRITON_SHARED_BYTES
from pscl_kernels.patch_nt_xent.triton import backward, forward, preparation, runs, tiling
from pscl_kernels.queue_info_nce.triton import rows as queue_rows
from pscl_kernels.queue_info_nce.triton import runs as queue_runs
from pscl_kernels.queue_info_nce.triton import sorting as queue_sorting
from pscl_kernels.queue_info_nce.triton import tiles as queue_tiles
from pscl_kernels.queue_info_nce.triton import tiling as queue_tiling
from pscl_kernels.sample_similar import triton as sampling

GOLDEN = Path(__file__).with_name("compiled.json")
CAPABILITIES = (80, 86, 89, 90, 100)
SHARED_LIMIT = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448}
"""Bytes of shared memory that one program may use."""

POINTERS = {
    "float32": "*fp32",
    "float16": "*fp16",
    "bfloat16": "*bf16",
    "int64": "*i64",
    "int32": "*i32",
    "bool": "*u8",
    "int8": "*i8",
}
TENSORS = {
    **dict.fromkeys(
        ["label", "own_label", "order", "partner", "taken", "group", "source", "number", "count"], "int64"
    ),
    **dict.fromkeys(["low", "high", "present"], "int32"),
    **dict.fromkeys(
        ["positive", "norm", "out", "own_lse", "lse", "factors", "own_factors", "scale", "total"],
        "float32",
    ),
    **dict.fromkeys(
        ["coefficient", "radial", "best", "known", "sums", "tau", "grad", "lse", "factor", "loss"], "float32"
    ),
    **dict.fromkeys(
        ["q", "k", "x", "own_x", "grad_q", "grad_k", "grad_q", "grad_k", "templates", "patches"], ""
    ),  # "": the features' dtype
    "valid": "bool",
    "first_of_tile": "int8",
    # Only of the queue loss.
    **dict.fromkeys(["filled", "head", "place", "groups", "subgroup", "first", "second"], "int64"),
    **dict.fromkeys(["row_group", "row_subgroup"], "int64"),
    **dict.fromkeys(["weight", "masses", "mass", "target", "inverse"], "float32"),
    **dict.fromkeys(["queue", "lengths", "same", "any_of_group"], "float32"),
    "keys": "",
    "plain": "bool",
}
SIZES = {"_tile_maxima": ("count",), "_greedy": ("count",)}
"""Numbers with the name of a tensor of another kernel."""
FLOATS = ("host_scale", "host_divisor", "host_slope")
WIDE = ("stride_templates", "stride_image")
ALIGNED = ("width", "stride_place", "stride_image")
"""Sizes that real calls of the sampling have as multiples of 16, which Triton compiles for."""


class Kernel(NamedTuple):
    """One kernel at one configuration."""

    name: str
    function: Any
    dtype: str
    constants: dict[str, Any]
    warps: int
    stages: int
    registers: int | None = None

    @property
    def source(self) -> str:
        """Short hash of the code with all that it calls, without comments, and of what it is compiled for."""
        options = sorted(self.constants.items()), self.dtype, self.warps, self.stages, self.registers
        return hashlib.sha256(f"{_code(self.function)} {options}".encode()).hexdigest()[:12]


@functools.cache
def _code(function: Any) -> str:
    """Code of a kernel, of the functions that it calls, and the values of its constants."""
    parts = [ast.unparse(ast.parse(function.src))]
    for name in function.fn.__code__.co_names:
        value = function.fn.__globals__.get(name)
        if isinstance(value, triton.runtime.jit.JITFunction):
            parts.append(_code(value))
        elif isinstance(value, triton.language.constexpr):
            parts.append(f"{name} = {value.value}")
    return "\n".join(parts)


def taken() -> Iterator[tuple[str, int, Kernel]]:
    """(name in the table, capability, kernel) of all that can run there; `backends` leaves out too wide rows."""
    for capability in CAPABILITIES:
        for kernel in shipped(capability):
            needs = TRITON_SHARED_BYTES[getattr(torch, kernel.dtype)]
            widest = max(width for width, needed in needs.items() if needed <= SHARED_LIMIT[capability])
            if kernel.constants.get("WIDTH", 0) <= widest:
                yield f"sm_{capability} {kernel.name}", capability, kernel


def shipped(capability: int) -> Iterator[Kernel]:
    """Every kernel at every configuration of the table, as tiled for a chip."""
    major = capability // 10
    found = {"ROWS": 128, "STEPS": runs.STEPS}
    yield Kernel("runs forward", runs._runs, "float32", found | {"lse": None}, 4, 3)
    yield Kernel("runs backward", runs._runs, "float32", found, 4, 3)
    yield Kernel("mean", preparation._mean, "float32", {"BLOCK": tiling.MEAN_BLOCK}, 16, 3)
    slope = {"BLOCK": tiling.MEAN_BLOCK}
    yield Kernel("temperature_gradient", backward._temperature_gradient, "float32", slope, 16, 3)
    yield from kernels_that_read_the_temperature(major)
    for dtype, bits in (("bfloat16", 16), ("float32", 32)):
        precision = "tf32x3" if bits == 32 else "tf32"
        for width in (16, 64, 128) if bits == 32 else (16, 64, 128, 256, 512):
            rows = {"WIDTH": width, "ROWS": tiling.PLAIN_ROWS, "tau": None}
            prepared = rows | {"STEPS": preparation.STEPS}
            yield Kernel(f"prepare {dtype} {width}", preparation._prepare, dtype, prepared, 4, 3)
            yield Kernel(f"finish {dtype} {width}", backward._finish, dtype, rows, 4, 3)
            for function, config, options in loss_kernels(width, bits, major):
                constants = {"WIDTH": width, "ROWS": config.rows, "COLUMNS": config.columns}
                constants |= {"PRECISION": precision, "POLYNOMIAL": config.polynomial, **options}
                names = [function.__name__[1:], dtype, str(width)]
                names += ["by shard"] * options.get("BY_SHARD", False)
                if "PLAIN" in options:
                    names.append("plain" if options["PLAIN"] else "maximum")
                yield Kernel(
                    " ".join(names), function, dtype, constants, config.warps, config.stages, config.registers
                )
            for name, function, constants, config in queue_kernels(width, bits, major):
                precise = {"PRECISION": precision} if "PRECISION" in function.arg_names else {}
                if "POLYNOMIAL" in function.arg_names:
                    precise["POLYNOMIAL"] = config.polynomial
                yield Kernel(
                    f"queue {name} {dtype} {width}",
                    function,
                    dtype,
                    {"WIDTH": width, **constants, **precise},
                    config.warps,
                    config.stages,
                )
        for width in (16,) if bits == 32 else (16, 32):
            constants = {
                "TILE": sampling.TILE,
                "TEMPLATES": sampling.TEMPLATES,
                "BLOCK": width,
                "MASKED": True,
                "stride_feature": 1,
            }
            constants["PRECISION"] = precision
            yield Kernel(
                f"tile_maxima {dtype} {width}", sampling._tile_maxima, dtype, constants, sampling.WARPS, 3
            )
            greedy = {**constants, "TILES": 512, "COUNT": 512}
            yield Kernel(
                f"greedy {dtype} {width}",
                sampling._greedy,
                dtype,
                greedy,
                sampling.WARPS,
                3,
                sampling.greedy_registers(width, getattr(torch, dtype)),
            )


def kernels_that_read_the_temperature(major: int) -> Iterator[Kernel]:
    """The kernels of the loss for a temperature on the device, at one width."""
    rows: dict[str, Any] = {"WIDTH": 64, "ROWS": tiling.PLAIN_ROWS}
    prepared = rows | {"STEPS": preparation.STEPS}
    yield Kernel("prepare, temperature on the device", preparation._prepare, "bfloat16", prepared, 4, 3)
    yield Kernel("finish, temperature on the device", backward._finish, "bfloat16", rows, 4, 3)
    for function, config, options in loss_kernels(64, 16, major):
        if options["PLAIN"]:
            constants = {"WIDTH": 64, "ROWS": config.rows, "COLUMNS": config.columns, "PRECISION": "tf32"}
            constants |= {"POLYNOMIAL": config.polynomial, **options}
            del constants["tau"]
            yield Kernel(
                f"{function.__name__[1:]}{' by shard' * options.get('BY_SHARD', False)}, temperature on the device",
                function,
                "bfloat16",
                constants,
                config.warps,
                config.stages,
                config.registers,
            )


def loss_kernels(width: int, bits: int, major: int) -> Iterator[tuple[Any, tiling.Config, dict[str, Any]]]:
    """The kernels that loop over pairs of rows, each with its tiling and further constants."""
    for plain in (True, False):
        for by_shard in (False, True):
            options = {"PLAIN": plain, "BY_SHARD": by_shard, "tau": None}
            yield forward._log_sums, tiling.forward_config(width, bits, major), options
        yield (
            backward._weighted_negatives,
            tiling.backward_config(width, bits, major),
            {"PLAIN": plain, "tau": None},
        )


def queue_kernels(
    width: int, bits: int, major: int
) -> Iterator[tuple[str, Any, dict[str, Any], tiling.Config]]:
    """The kernels of the queue loss with all kinds of labels: name, function, constants and tiling."""
    default = tiling.Config(queue_tiling.ROWS, 0, 4, 3)
    labels = {"KINDS": 2, "ROWS": queue_tiling.ROWS}
    yield "prepare", queue_rows._prepare, labels, default
    if (width, bits) == (64, 16):  # the same for all
        options = {"NORMALISE": True, "BLOCK": queue_tiling.LOSSES}
        yield "losses", queue_rows._losses, options, default
        for function in (queue_sorting._group_keys, queue_sorting._label_runs):
            yield function.__name__[1:], function, {"BLOCK": queue_tiling.LABELS}, default
    yield "copy_keys", queue_sorting._copy_keys, {"ROWS": queue_tiling.ROWS}, default
    yield "finish", queue_rows._finish, {**labels, "WITH_K": True}, default
    runs = {"PART": min(queue_tiling.PART, width), "ENTRIES": queue_tiling.BLOCK}
    yield "run_pieces", queue_runs._run_pieces, runs, default
    yield "run_totals", queue_runs._run_totals, runs, default
    for name, function, config in (
        ("log_sums", queue_tiles._log_sums, queue_tiling.forward_config(width, bits, major)),
        ("weighted_keys", queue_tiles._weighted_keys, queue_tiling.backward_config(width, bits, major)),
    ):
        yield name, function, {"ROWS": config.rows, "COLUMNS": config.columns}, config


def build(kernel: Kernel, capability: int) -> Any:
    """The kernel compiled for one chip."""
    signature, attributes = {}, {}
    for index, name in enumerate(kernel.function.arg_names):
        if name in kernel.constants:
            signature[name] = "constexpr"
        elif name in TENSORS and name not in SIZES.get(kernel.function.__name__, ()):
            signature[name] = POINTERS[TENSORS[name] or kernel.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if name in FLOATS else "i64" if name in WIDE else "i32"
            if name in ALIGNED:
                attributes[(index,)] = [["tt.divisibility", 16]]
    constants = {name: value for name, value in kernel.constants.items() if name in signature}
    source = ASTSource(fn=kernel.function, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": kernel.warps, "num_stages": kernel.stages, "maxnreg": kernel.registers}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def measure(kernel: Kernel, capability: int) -> dict[str, Any]:
    """Registers, spilled bytes, shared memory and matrix instruction of one kernel on one chip."""
    compiled = build(kernel, capability)
    assert len(compiled.asm["cubin"]) > 0
    code = compiled.asm["ptx"]
    registers, spilled = _assemble(code, capability)
    units = [name for name in ("wgmma", "tcgen05.mma", "mma.sync") if name in code]
    return {
        "registers": registers,
        "spilled_bytes": spilled,
        "shared_bytes": compiled.metadata.shared,
        "matrix_unit": units[0] if units else "none",
        "source": kernel.source,
    }


def _assemble(code: str, capability: int) -> tuple[int, int]:
    """Registers per thread and spilled bytes, as the assembler reports them."""
    match = re.search(r"\.target (sm_\w+)", code)
    assert match is not None
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(code)
        file.flush()
        command = [get_ptxas(capability).path, "-v", f"--gpu-name={match[1]}", file.name, "-o", "/dev/null"]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    used = re.findall(r"Used (\d+) registers", report)
    return int(used[0]), sum(map(int, re.findall(r"(\d+) bytes spill", report)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="update compiled.json")
    parser.add_argument(
        "names", nargs="*", help="only kernels with these prefixes, with or without sm_90; others are kept"
    )
    parser.add_argument("--all", action="store_true", help="also kernels whose sources have not changed")
    arguments = parser.parse_args()
    wanted = tuple(arguments.names) or ""
    before = json.loads(GOLDEN.read_text())["kernels"] if GOLDEN.exists() else {}
    for name, capability, kernel in taken():
        if not name.startswith(wanted) and not kernel.name.startswith(wanted):
            continue
        if arguments.all or before.get(name, {}).get("source") != kernel.source:
            before[name] = measure(kernel, capability)
            if arguments.write:
                write(before)
        print(f"{name:50}", *before[name].values(), flush=True)


def write(measured: dict[str, Any]) -> None:
    """Write the table, without kernels that do not exist any more; after each kernel, so that a stop loses nothing."""
    kernels = {name: measured[name] for name, _, _ in taken() if name in measured}
    GOLDEN.write_text(json.dumps({"triton": triton.__version__, "kernels": kernels}, indent=1) + "\n")


if __name__ == "__main__":
    main()
