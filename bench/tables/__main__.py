"""Writes the measured tables into the documentation.

    python -m bench.tables            fill every block
    python -m bench.tables --check    exit 1 if a block differs from its result file

Figures in the documentation are not typed by hand: each comes from a file in bench/results/. A block begins with
`<!-- table: NAME -->` and ends with `<!-- end table -->`; NAME is a key of TABLES.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from functools import partial

from bench.tables import gpu, measurements, recipe, study
from bench.tables.common import RESULTS, ROOT

DOCUMENTS = ("README.md", "kernels/README.md", "docs/*.md", "bench/README.md", "slurm/README.md")

BLOCK = re.compile(r"(<!-- table: ([a-z0-9-]+) -->\n).*?(<!-- end table -->)", re.DOTALL)

TABLES: dict[str, Callable[[], str]] = {
    "cpu-submit-latency": lambda: measurements.latency("cpu-submit-latency"),
    "cpu-inference": lambda: study.inference("cpu-inference"),
    "cpu-inference-other-sets": lambda: study.inference("cpu-inference-other-sets"),
    "cpu-robustness": lambda: study.robustness("cpu-robustness"),
    "cpu-unweighted": lambda: study.unweighted("cpu-unweighted"),
    "cpu-study-references-against-none": lambda: study.study("cpu-study-references", "none"),
    "cpu-matching-purity": lambda: study.matching("cpu-matching-purity"),
    "gpu-study-one-shot": lambda: study.study("gpu-study-one-shot"),
    "cpu-study-one-image": lambda: study.study("cpu-study-one-image"),
    "cpu-study-one-image-first": lambda: study.study("cpu-study-one-image-first"),
    "cpu-study-all-annotated": lambda: study.study("cpu-study-all-annotated"),
    "cpu-study-uhcs-regions": lambda: study.study("cpu-study-uhcs-regions"),
    "cpu-study-other-sets": lambda: study.study("cpu-study-other-sets"),
    "cpu-study-other-sets-first": lambda: study.study("cpu-study-other-sets-first"),
    "cpu-study-further-sets": lambda: study.study("cpu-study-further-sets"),
    "cpu-study-broad-pool": lambda: study.study("cpu-study-broad-pool"),
    "cpu-study-own-images": lambda: study.study("cpu-study-own-images"),
    "cpu-study-data-efficiency": lambda: study.by_budget("cpu-study-data-efficiency"),
    "cpu-study-data-efficiency-first": lambda: study.by_budget("cpu-study-data-efficiency-first"),
    "cpu-study-neu-seg": lambda: study.by_budget("cpu-study-neu-seg"),
    "recipe-trials": lambda: recipe.trials("recipe-trials"),
    "large-images": lambda: recipe.large_images("large-images"),
    "suggest": lambda: measurements.suggestion("suggest"),
    "cpu-step": lambda: measurements.step("cpu-step-vs-released"),
    "cpu-patch-nt-xent": lambda: measurements.kernels("cpu-patch-nt-xent"),
    "cpu-queue-info-nce": lambda: measurements.kernels("cpu-queue-info-nce"),
    "cpu-sample-similar": lambda: measurements.kernels("cpu-sample-similar"),
    "cpu-sampling-path": lambda: measurements.kernels("cpu-sampling-path", "sampled"),
    "cpu-archive-rate": lambda: measurements.archive_rate("cpu-archive-rate"),
    "cpu-archive-scale": lambda: measurements.archive_scale("cpu-archive-scale"),
    "cpu-archive-million": lambda: measurements.archive_scale("cpu-archive-million"),
    "cpu-archive-million-check": lambda: measurements.archive_scale("cpu-archive-million-check"),
    "cpu-archive-crops": lambda: measurements.crop_rates("cpu-archive-crops"),
    "cpu-chaos": lambda: measurements.chaos("cpu-chaos-1", "cpu-chaos-2"),
    "cpu-checkpoint-overhead": lambda: measurements.checkpoint_overhead("cpu-checkpoint-overhead"),
    "cpu-large-batch": lambda: measurements.large_batch("cpu-large-batch"),
    "cpu-scaling": lambda: measurements.scaling("cpu-scaling"),
    "demo": lambda: measurements.demo("demo"),
    "synthetic-statistics": lambda: measurements.synthetic("synthetic-statistics"),
    "cpu-peers": lambda: measurements.peers("cpu-peers"),
    "cpu-step-loss": lambda: measurements.step_loss("cpu-step-vs-released"),
    **{name: partial(gpu.device_tables, name, RESULTS) for name in gpu.GPU_TABLES},
}


def fill(text: str) -> str:
    """The text with every block filled; exits if no table has a block's name."""

    def replace(match: re.Match[str]) -> str:
        name = match.group(2)
        if name not in TABLES:
            raise SystemExit(f"unknown table {name}; choose from {', '.join(TABLES)}")
        try:
            table = TABLES[name]()
        except FileNotFoundError:
            table = "Not measured yet."
        return f"{match.group(1)}{table}\n{match.group(3)}"

    return BLOCK.sub(replace, text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for path in sorted(path for pattern in DOCUMENTS for path in ROOT.glob(pattern)):
        old = path.read_text(encoding="utf-8")
        new = fill(old)
        if new != old:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(new, encoding="utf-8")
    print("\n".join(stale) or "all tables are up to date")
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
