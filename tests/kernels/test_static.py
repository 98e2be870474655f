"""The static model: reading machine code, its arithmetic, and the table of the kernels that are shipped."""

import importlib.util
import json
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

LISTING = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDG.E R2, desc[UR4][R2.64] ;
.L_x_1:
        /*0020*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], RZ, !UPT ;
        /*0030*/                   MUFU.EX2 R3, R3 ;
        /*0040*/              @!P0 MUFU.EX2 R4, R4 ;
        /*0050*/                   SHFL.BFLY PT, R5, R4, 0x1, 0x1f ;
        /*0060*/               @P1 BRA `(.L_x_1) ;
        /*0070*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0080*/              @!P0 BRA `(.L_x_2) ;
        /*0090*/               @P0 BRA `(.L_x_0) ;
.L_x_2:
        /*00a0*/                   MUFU.LG2 R3, R3 ;
.L_x_3:
        /*00b0*/                   BRA `(.L_x_3);
"""


def test_innermost_loop_is_counted():
    from .sass import Loop, loops

    assert loops(LISTING) == [
        Loop(issue=5, mufu=2, matrix=1, matrix_flop=2 * 64 * 64 * 16, shuffles=1, barriers=0)
    ]
    assert loops(LISTING.replace("HGMMA.64x64x16.F32.BF16", "HMMA.16816.F32.BF16"))[0].matrix_flop == 4096
    assert loops(LISTING.replace("HGMMA.64x64x16.F32.BF16", "FADD")) == []


def test_arithmetic():
    from .sass import Code
    from .static import CHIPS, blocks_at_once, bound, predicted

    chip = CHIPS[90]
    assert blocks_at_once(Code([], 164, 0, 32_768), 4, chip) == 3  # registers
    assert blocks_at_once(Code([], 32, 0, 100 * 1024), 4, chip) == 2  # shared memory
    assert blocks_at_once(Code([], 16, 0, 0), 32, chip) == 2  # warps
    row = {"tile": [128, 64, 4, 2], "clocks": {"tensor": 300.0, "mufu": 500.0, "issue": 200.0}}
    low, high = predicted(row, 90, 132 * 128 * 2)
    assert low == pytest.approx(2 * (132 * 4) * 500 / 1.755e6)
    assert high == pytest.approx(low * 800 / 500)
    assert predicted(row, 90, 132 * 128 * 2 + 1)[0] > 1.49 * low  # a third wave for one row
    assert bound(row) == "mufu"


def test_there_is_a_table_of_every_triton_that_is_declared():
    from .static import CHIPS, GOLDEN, NAMES, WIDTHS

    root = Path(__file__).resolve().parents[2]
    (declared,) = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"][
        "triton"
    ]
    assert declared == "triton>=3.6,<3.8"
    golden = json.loads(GOLDEN.read_text())
    assert set(golden) == {"3.6", "3.7"}
    for version, rows in golden.items():
        for chip in CHIPS:
            assert len([name for name in rows if name.startswith(f"sm_{chip} ")]) == len(NAMES) * len(WIDTHS)
        for name, row in rows.items():
            if name.startswith("sm_90 "):
                assert row["stack"] == 0, (version, name)
                assert row["repeated"] == 1, (version, name)


@pytest.mark.parametrize(
    "name", ["log_sums 64 plain", "weighted_negatives 64 plain", "weighted_negatives 256 plain"]
)
def test_no_kernel_does_more_per_tile_than_its_table_says(name):
    from .static import GOLDEN, describe, selected, version

    golden = json.loads(GOLDEN.read_text()).get(version())
    if golden is None:
        pytest.skip(f"no table of Triton {version()}")
    wanted = name.replace(" ", " bfloat16 ", 1)
    kernel = next(kernel for kernel in selected(90) if kernel.name == wanted)
    row, before = describe(kernel, 90), golden[f"sm_90 {wanted}"]
    assert row["tile"] == before["tile"]
    for count in ("mufu", "matrix", "repeated", "stack", "barriers"):
        assert row[count] <= before[count], count
    assert row["issue"] <= 1.05 * before["issue"]
    assert row["blocks"] >= before["blocks"]
