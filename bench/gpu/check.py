"""Runs the correctness suite of each operation and keeps the outcome: nothing is measured that is not correct.

Exit code 0 where all operations are correct, 1 where one is not; `require` is what the parts that measure ask.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.gpu.results import Results, folder, read
from bench.gpu.setting import Setting, parse

FOLDER = Path(__file__).parent / "correctness"

OPERATIONS = ("patch_nt_xent", "sample_similar", "queue_info_nce")


def main() -> None:
    setting = parse(__doc__)
    results = Results("correctness", setting, {}, of_kernels=True)
    results.entries = [e for e in results.entries if e["passed"]]
    wanted = [o for o in OPERATIONS if setting.only in (None, o) and not results.has(operation=o)]
    # A dry run saves the start of processes; otherwise an illegal access of one operation ends that one's suite alone.
    for together in [wanted] if setting.tiny and wanted else [[operation] for operation in wanted]:
        outcome = run(together, setting)
        for operation in together:
            results.add({"operation": operation, **outcome})
    wrong = [entry["operation"] for entry in results.entries if not entry["passed"]]
    if wrong:
        sys.exit(f"not correct: {', '.join(wrong)}; nothing of them will be measured")


def run(operations: Sequence[str], setting: Setting) -> dict[str, object]:
    """Outcome of the suites of these operations, in a process of their own."""
    # `-c /dev/null`: neither this repository's options nor its plugins are needed.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        os.devnull,
        "--rootdir",
        ".",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    log = folder() / f"correctness-{'-'.join(operations)}.log"
    environment = {**os.environ, "PSCL_BENCH_DEVICE": setting.device.type}
    with log.open("w", encoding="utf-8") as handle:
        try:
            code = subprocess.run(
                [*command, *(str(FOLDER / f"{operation}.py") for operation in operations)],
                stdout=handle,
                stderr=subprocess.STDOUT,
                env=environment,
                timeout=max(30.0, setting.left()),
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            code = -1
    lines = log.read_text(encoding="utf-8").strip().splitlines()
    return {"passed": code == 0, "summary": lines[-1] if code >= 0 and lines else "cut off"}


def require(setting: Setting, *operations: str) -> None:
    """End the program unless these operations were found correct in these circumstances."""
    found = read(f"gpu-{setting.slug()}-correctness")
    current = Results("correctness", setting, {}, of_kernels=True).circumstances
    passed = {
        entry["operation"]
        for entry in (found["measured"] if found and found["circumstances"] == current else [])
        if entry["passed"]
    }
    missing = [operation for operation in operations if operation not in passed]
    if missing:
        sys.exit(f"not measured: {', '.join(missing)} has not passed the part 'correctness' in this folder")


if __name__ == "__main__":
    main()
