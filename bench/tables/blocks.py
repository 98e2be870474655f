"""Every table by the name of its block, and filling the blocks of a text.

A block stands between `<!-- table: NAME -->` and `<!-- end table -->`; NAME is a key of TABLES.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from bench.tables import data, gpu, operations, study, training
from bench.tables.common import RESULTS

BLOCK = re.compile(r"(<!-- table: ([a-z0-9-]+) -->\n).*?(<!-- end table -->)", re.DOTALL)

TABLES: dict[str, Callable[[], str]] = {
    "cpu-submit-latency": lambda: training.latency("cpu-submit-latency"),
    "cpu-study-one-shot": lambda: study.study("cpu-study-one-shot"),
    "cpu-study-methods": lambda: study.study("cpu-study-methods"),
    "cpu-study-longer": lambda: study.study("cpu-study-longer", "none"),
    "cpu-study-longer-references": lambda: study.study("cpu-study-longer-references", "none"),
    "cpu-study-variants-validation": lambda: study.validation("cpu-study-variants"),
    "cpu-study-rates-longer": lambda: study.validation("cpu-study-rates-longer"),
    "cpu-inference": lambda: study.inference("cpu-inference"),
    "cpu-study-rates": lambda: study.validation("cpu-study-rates"),
    "cpu-study-references": lambda: study.study("cpu-study-references"),
    "cpu-study-references-against-none": lambda: study.study("cpu-study-references", "none"),
    "cpu-matching-purity": lambda: study.matching("cpu-matching-purity"),
    "cpu-study-sampling": lambda: study.sampling("cpu-study-one-shot"),
    "cpu-study-data-efficiency": lambda: study.budgets("cpu-study-data-efficiency"),
    "cpu-study-core": lambda: study.budgets("cpu-study-core"),
    "gpu-study-one-shot": lambda: study.study("gpu-study-one-shot"),
    "cpu-step": lambda: training.step("cpu-step-vs-released"),
    "cpu-patch-nt-xent": lambda: operations.kernels("cpu-patch-nt-xent"),
    "cpu-queue-info-nce": lambda: operations.kernels("cpu-queue-info-nce"),
    "cpu-sample-similar": lambda: operations.kernels("cpu-sample-similar"),
    "cpu-sampling-path": lambda: operations.kernels("cpu-sampling-path", "sampled"),
    "cpu-archive-rate": lambda: data.archive_rate("cpu-archive-rate"),
    "cpu-chaos": lambda: training.chaos("cpu-chaos-1", "cpu-chaos-2"),
    "cpu-checkpoint-overhead": lambda: training.checkpoint_overhead("cpu-checkpoint-overhead"),
    "cpu-scaling": lambda: training.scaling("cpu-scaling"),
    "synthetic-statistics": lambda: data.synthetic("synthetic-statistics"),
    "cpu-peers": lambda: operations.peers("cpu-peers"),
    "cpu-step-loss": lambda: training.step_loss("cpu-step-vs-released"),
    **{name: partial(gpu.device_tables, name, RESULTS) for name in gpu.GPU_TABLES},
}


def fill(text: str) -> str:
    """The text with every block replaced by its table."""

    def replace(match: re.Match[str]) -> str:
        name = match.group(2)
        if name not in TABLES:
            raise SystemExit(f"no table is called {name}; there are {', '.join(TABLES)}")
        try:
            table = TABLES[name]()
        except FileNotFoundError:
            table = "Not measured yet."
        return f"{match.group(1)}{table}\n{match.group(3)}"

    return BLOCK.sub(replace, text)
