"""Losses of the first ten steps of every pretraining and fine-tuning, to compare two versions of the code.

    python bench/step_losses.py record OUT.json [--work FOLDER]
    python bench/step_losses.py compare BEFORE.json AFTER.json

Runs the console command only, so that the same script measures versions whose modules differ. The archive is synthetic
and made once in FOLDER: give the same FOLDER to both versions.
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


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    record = commands.add_parser("record")
    record.add_argument("out", type=Path)
    record.add_argument("--work", type=Path)
    compare = commands.add_parser("compare")
    compare.add_argument("before", type=Path)
    compare.add_argument("after", type=Path)
    options = parser.parse_args()
    if options.command == "compare":
        sys.exit(differences(options.before, options.after))
    with tempfile.TemporaryDirectory() as folder:
        options.out.write_text(json.dumps(measure(options.work or Path(folder)), indent=1) + "\n")


def measure(work: Path) -> dict[str, list[dict[str, float]]]:
    """Metrics of each run, step by step."""
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
            changes = ["views.size=[96,96]", "batch_size=6", "runtime.workers=0", "schedule.warmup_steps=2"]
            if method in REFERENCED:
                changes.append(f"method.reference.ids=[{REFERENCE}]")
            file = CONFIGS / "pretrain" / f"{method}.yaml"
            found[method] = train("pretrain", file, Path(runs) / method, *common, *changes)
        small = ["crop=[96,96]", "validate_every=5", f"references=[{REFERENCE}]"]
        for name, config, changes in (
            ("finetune", "default", ["batch_size=4"]),
            ("finetune-pretrained", "default", ["batch_size=4", f"pretrained={Path(runs) / 'pscl-simclr'}"]),
            ("finetune-semi-supervised", "ideal", ["batch_size=3", "semi_supervised.batch_size=3"]),
        ):
            file = CONFIGS / "finetune" / f"{config}.yaml"
            found[name] = train("finetune", file, Path(runs) / name, *common, *small, *changes)
    return found


def train(kind: str, config: Path, folder: Path, *changes: str) -> list[dict[str, float]]:
    """The logged values of one run that do not depend on the clock."""
    run(kind, "--config", config, f"run={folder}", *changes)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clocked = ("images_per_second", "memory_mb", "checkpoint_seconds", "time")
    return [{key: value for key, value in line.items() if key not in clocked} for line in lines]


def run(*arguments: object) -> None:
    """One call of the console command."""
    subprocess.run(
        [sys.executable, "-m", "pscl_hpc.cli", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL
    )


def differences(before: Path, after: Path) -> int:
    """Print what differs in values that both versions log; the number of runs that differ."""
    old, new = (json.loads(path.read_text()) for path in (before, after))
    differing = 0
    for name, lines in old.items():
        wrong = []
        for number, line in enumerate(lines):
            other = new.get(name, [])[number : number + 1]
            for key, value in line.items():
                if not other or (key in other[0] and other[0][key] != value):
                    wrong.append(f"line {number} {key}: {value} {other[0].get(key) if other else 'absent'}")
        shared = {key for line in lines for key in line} & {key for line in new.get(name, []) for key in line}
        print(f"{name:28} {'equal' if not wrong else wrong[:3]} ({', '.join(sorted(shared))})")
        differing += bool(wrong)
    return differing


if __name__ == "__main__":
    main()
