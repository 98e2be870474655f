"""Losses of the first ten steps of every pretraining and fine-tuning, to compare two versions of the code.

    python bench/step_losses.py measure OUT.json --work FOLDER
    python bench/step_losses.py compare BEFORE.json AFTER.json

Only the console command is used, so that the same script measures versions whose modules differ. The archive is
synthetic and made once in FOLDER: give the same FOLDER to both versions. `compare` prints what differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
REFERENCE = "synthetic_particles/particles_000000"
REFERENCED = ("pscl-simclr", "pscl-guided", "pscl-moco", "pscl-simclr-paper")
METHODS = (*REFERENCED, "pscl-clustered", "simclr", "moco", "byol", "densecl", "core", "ideal")
STEPS = 10
CLOCKED = ("images_per_second", "memory_mb", "checkpoint_seconds", "time")
"""Values that differ from run to run."""

Runs = dict[str, list[dict[str, float]]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    measure_command = commands.add_parser("measure")
    measure_command.add_argument("out", type=Path)
    measure_command.add_argument("--work", type=Path, required=True)
    compare_command = commands.add_parser("compare")
    compare_command.add_argument("before", type=Path)
    compare_command.add_argument("after", type=Path)
    options = parser.parse_args()
    if options.command == "measure":
        options.out.write_text(json.dumps(measure(options.work), indent=1) + "\n")
        return
    old, new = (json.loads(path.read_text()) for path in (options.before, options.after))
    found = {name: difference(lines, new.get(name, [])) for name, lines in old.items()}
    for name, what in found.items():
        print(f"{name:28} {what or 'equal'}")
    sys.exit(any(found.values()))


def measure(work: Path) -> Runs:
    """Logged values of each run, step by step."""
    work.mkdir(parents=True, exist_ok=True)
    archive = work / "alloys.h5"
    if not archive.exists():
        run("archive", "synth", "--out", archive, "--images", 24, "--seed", 1, "--family", "particles")
    found = {}
    with tempfile.TemporaryDirectory() as runs:
        common = [
            f"data.archive={archive}",
            "runtime.threads=1",
            "log.every_steps=1",
            f"schedule.steps={STEPS}",
        ]
        for method in METHODS:
            changes = [
                "views.size=[96,96]",
                "batch_size=6",
                "runtime.workers=0",
                "schedule.warmup_steps=2",
            ]
            if method in REFERENCED:
                changes.append(f"method.reference.ids=[{REFERENCE}]")
            file = CONFIGS / "pretrain" / f"{method}.yaml"
            found[method] = train("pretrain", file, Path(runs) / method, *common, *changes)
        small = ["crop=[96,96]", "validate_every=5", f"references=[{REFERENCE}]"]
        pretrained = f"pretrained={Path(runs) / 'pscl-simclr'}"
        for name, config_name, changes in (
            ("finetune", "unet", ["batch_size=4"]),
            ("finetune-pretrained", "unet", ["batch_size=4", pretrained]),
            ("finetune-semi-supervised", "ideal", ["batch_size=3", "semi_supervised.batch_size=3"]),
        ):
            file = CONFIGS / "finetune" / f"{config_name}.yaml"
            found[name] = train("finetune", file, Path(runs) / name, *common, *small, *changes)
    return found


def train(kind: str, config: Path, folder: Path, *changes: str) -> list[dict[str, float]]:
    """The logged values of one run that do not depend on the clock."""
    run(kind, "--config", config, f"run={folder}", *changes)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in CLOCKED} for line in lines]


def run(*arguments: object) -> None:
    """One call of the console command."""
    command = [sys.executable, "-m", "pscl_hpc.cli", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def difference(before: list[dict[str, float]], after: list[dict[str, float]]) -> str:
    """The first value of ``before`` that ``after`` does not have, in words; values may have been added."""
    if len(before) != len(after):
        return f"{len(after)} lines instead of {len(before)}"
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        for key, value in old.items():
            if new.get(key) != value:
                return f"line {number}, {key}: {new.get(key)} instead of {value}"
    return ""


if __name__ == "__main__":
    main()
