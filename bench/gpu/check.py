"""Runs the correctness suite of each operation and records the outcome; `require` is what other parts ask.

Exit code 1 if an operation is not correct.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.gpu.run import Results, Setting, folder, parse

SUITE = Path(__file__).with_name("correctness.py")

OPERATIONS = ("patch_nt_xent", "sample_similar", "queue_info_nce")


def main() -> None:
    setting, _ = parse(argparse.ArgumentParser(description=__doc__))
    results = Results("correctness", setting)
    results.entries = [entry for entry in results.entries if entry["passed"]]
    missing = [operation for operation in OPERATIONS if not results.find(operation=operation)]
    # Side by side, as most of the time goes into compilation.
    running = {operation: start(operation, setting) for operation in missing}
    for operation, process in running.items():
        results.add({"operation": operation, **outcome(operation, process, setting)})
    wrong = [entry["operation"] for entry in results.entries if not entry["passed"]]
    if wrong:
        sys.exit(f"not correct: {', '.join(wrong)}; see correctness-*.log. They will not be measured")


def start(operation: str, setting: Setting) -> subprocess.Popen[bytes]:
    """Begin one operation's tests, in a separate process, so that an illegal access ends only that process."""
    # Neither this repository's pytest options nor its plugins are needed.
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
    with log_of(operation).open("wb") as log:
        return subprocess.Popen(
            [*command, str(SUITE), "-k", operation],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PSCL_BENCH_DEVICE": setting.device.type},
        )


def outcome(operation: str, process: subprocess.Popen[bytes], setting: Setting) -> dict[str, Any]:
    """Whether the tests passed, and the last line of their output."""
    try:
        code = process.wait(timeout=max(1.0, setting.left()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return {"passed": False, "summary": "out of time"}
    return {"passed": code == 0, "summary": log_of(operation).read_text().strip().rpartition("\n")[2]}


def log_of(operation: str) -> Path:
    return folder() / f"correctness-{operation}.log"


def require(setting: Setting, *operations: str) -> None:
    """Exit unless these operations have passed here with the kernels as they are now."""
    passed = {entry["operation"] for entry in Results("correctness", setting).entries if entry["passed"]}
    missing = [operation for operation in operations if operation not in passed]
    if missing:
        sys.exit(f"not measured: {', '.join(missing)} has not passed the part 'correctness' in this folder")


if __name__ == "__main__":
    main()
