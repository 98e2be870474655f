"""The Triton kernels in the interpreter, on a GPU where there is one, and compiled for several chips."""

import contextlib
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pscl_kernels.backends import TRITON_SHARED_BYTES

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@needs_triton
@pytest.mark.parametrize("where", ["interpreter", pytest.param("gpu", marks=needs_gpu)])
@pytest.mark.parametrize(
    "name", ["triton_patch_nt_xent.py", "triton_queue_info_nce.py", "triton_sample_similar.py"]
)
def test_kernels(name, where):
    """All tests of the file, in a separate process: Triton decides at import whether it interprets."""
    environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    environment.pop("TRITON_INTERPRET", None)
    if where == "interpreter":
        environment["TRITON_INTERPRET"] = "1"
    file = Path(__file__).with_name(name)
    command = [sys.executable, "-m", "pytest", str(file), "-q", "-p", "no:cacheprovider", "--timeout=240"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]


@needs_triton
def test_sampling_takes_more_images_than_a_grid_is_high(monkeypatch):
    from pscl_kernels.sample_similar import triton as sampling

    grids = []

    class Silent:
        def __getitem__(self, grid):
            grids.append(grid)
            return lambda *args, **kwargs: None

    # The meta device knows no autocast.
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    monkeypatch.setattr(sampling, "_tile_maxima", Silent())
    monkeypatch.setattr(sampling, "_greedy", Silent())
    templates, patches = torch.empty(2, 16, device="meta"), torch.empty(70_000, 300, 16, device="meta")
    sampling.sample_similar._init_fn(templates, patches, None)
    assert [math.prod(grid) for grid in grids] == [70_000 * 3, 70_000]
    assert all(size <= 65_535 for grid in grids for size in grid[1:])


@needs_triton
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize(
    "which",
    [
        "log_sums bfloat16 64 plain",
        "weighted_negatives bfloat16 64 plain",
        "queue log_sums bfloat16 64",
        "queue weighted_keys bfloat16 64",
    ],
)
def test_main_kernels_compile_without_spills(which, capability):
    from .compiled import SHARED_LIMIT, measure, shipped

    kernel = next(kernel for kernel in shipped(capability) if kernel.name == which)
    measured = measure(kernel, capability)
    assert measured["spilled_bytes"] == 0
    assert measured["shared_bytes"] <= SHARED_LIMIT[capability]
    assert measured["matrix_unit"] == {80: "mma.sync", 90: "wgmma", 100: "tcgen05.mma"}[capability]


def skip_if_stale(table):
    from .compiled import taken

    wanted = {name: kernel.source for name, _, kernel in taken()}
    assert set(table) <= set(wanted)
    stale = [name for name, source in wanted.items() if table.get(name, {}).get("source") != source]
    if stale:
        pytest.skip(
            f"{len(stale)} of {len(wanted)} kernels have changed since they were compiled: run compiled.py --write"
        )


@needs_triton
def test_table_of_all_configurations_is_current_and_clean():
    """`python compiled.py --write` measures what has changed, which may take minutes; this test checks its table."""
    import triton

    from .compiled import GOLDEN, SHARED_LIMIT

    table = json.loads(GOLDEN.read_text())
    if table["triton"] != triton.__version__:
        pytest.skip(f"the table is of Triton {table['triton']}, installed is {triton.__version__}")
    # A kernel that runs once per row.
    spills = {"sm_90 queue finish float32 128": 16}
    for name, measured in table["kernels"].items():
        assert measured["spilled_bytes"] == spills.get(name, 0), name
        assert measured["shared_bytes"] <= SHARED_LIMIT[int(name.split()[0][3:])], name
        # Blocks of the widest rows are too small for a warp group in the backward pass.
        main = "log_sums bfloat16" in name or ("weighted_negatives bfloat16" in name and " 512 " not in name)
        if name.startswith("sm_90 ") and main:
            assert measured["matrix_unit"] == "wgmma", name
    skip_if_stale(table["kernels"])


@needs_triton
def test_shared_memory_that_backends_count_on_is_what_the_compiler_uses():
    from .compiled import GOLDEN, taken

    table = json.loads(GOLDEN.read_text())["kernels"]
    skip_if_stale(table)
    for dtype in (torch.float32, torch.bfloat16):
        for width, needed in TRITON_SHARED_BYTES[dtype].items():
            of_width = [
                table[name]["shared_bytes"]
                for name, _, kernel in taken()
                if getattr(torch, kernel.dtype) == dtype and kernel.constants.get("WIDTH", 0) <= width
            ]
            assert max(of_width) == needed, (dtype, width)


@needs_gpu
def test_auto_is_triton_on_a_gpu():
    from pscl_kernels.backends import resolve_backend

    assert resolve_backend("auto", torch.ones(2, 3, device="cuda")) == "triton"
