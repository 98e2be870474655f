"""Record the results of a study that `pscl-hpc study` has finished.

    python -m bench.study runs/studies/one-image --config one-image.yaml --name cpu-study-one-image

The result is the study's `results.json` without the paths of this machine, and its configuration.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.record import record
from pscl_hpc.config import parse_yaml
from pscl_hpc.errors import UserError
from pscl_hpc.results.study import read_results

PLACES = ("archive", "run", "reuse")
"""Keys with paths of this machine."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, help="the study's folder")
    parser.add_argument("--name", required=True, help="name of the file in bench/results/")
    parser.add_argument("--config", required=True, help="the study's file in configs/studies/")
    parser.add_argument("--partial", action="store_true", help="also if runs are missing")
    arguments = parser.parse_args()
    try:
        results = read_results(arguments.study)
    except UserError as error:
        sys.exit(f"error: {error}")
    if (results.missing or results.failed) and not arguments.partial:
        sys.exit(f"{arguments.study}: {len(results.missing)} runs are missing; finish it, or add --partial")
    study = parse_yaml((arguments.study / "study.yaml").read_text(encoding="utf-8"))
    content = results.model_dump(mode="json", exclude={"archive_path", "failed"})
    content["configuration"] = {key: value for key, value in study.items() if key not in PLACES}
    shown = f"pscl-hpc study configs/studies/{arguments.config} archive=ARCHIVE"
    print(record(arguments.name, content, command=shown))


if __name__ == "__main__":
    main()
