"""The content of the page of a study."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pscl_hpc.report.curves import Chart
from pscl_hpc.report.predictions import study_panels
from pscl_hpc.report.study_figures import budget_panel, comparison_panel, score_panel
from pscl_hpc.report.study_text import (
    PURITY,
    comparison_table,
    notes,
    overall,
    pair_text,
    pools,
    sampling_table,
    score_table,
    sentences,
)
from pscl_hpc.report.table import Table
from pscl_hpc.results.study import StudyResults


@dataclass(frozen=True)
class Block:
    """A table under its heading."""

    title: str
    badges: tuple[str, ...]
    table: Table
    charts: tuple[Chart, ...]
    details: Table | None = None
    """Folded away below the table."""


def study_context(results: StudyResults, folder: Path) -> dict[str, object]:
    """The values for the template ``study.html.j2``."""
    budgets = len(results.budgets) > 1
    curves = [
        (panel.title, panel.chart(f"budget{index}"))
        for index, place in enumerate(dict.fromkeys(place[:2] for place in results.places))
        if (panel := budget_panel(results, *place)) is not None
    ]
    return {
        "results": results,
        "sentences": sentences(results),
        "notes": notes(results),
        "pairs": pair_text(results),
        "scores": [
            Block(
                place[0],
                (place[1], *([f"budget {place[2]}"] if budgets else [])),
                score_table(results, place),
                (score_panel(results, place).chart(f"scores{index}"),),
            )
            for index, place in enumerate(results.places)
        ],
        "comparisons": [
            _comparisons(results, baseline, index) for index, baseline in enumerate(results.baselines)
        ],
        "curves": curves,
        "purity": PURITY,
        "sampling": sampling_table(results) if results.sampling else None,
        "panels": study_panels(results, folder),
        "pools": pools(results),
        "costs": _costs(results),
        "devices": sorted({row.device for row in results.rows}),
    }


def _comparisons(results: StudyResults, baseline: str, index: int) -> Block:
    """All methods against one baseline: over all headline scores, if there are such, and by data set and split."""
    lines = [line for line in results.comparisons if line.baseline == baseline]
    single = comparison_table(results, [line for line in lines if line.dataset])
    total = comparison_table(results, [line for line in lines if not line.dataset])
    charts = tuple(
        comparison_panel(results, part).chart(f"against{index}-{place}")
        for place, part in enumerate(overall(results, baseline))
    )
    shown, details = (total, single) if total.rows else (single, None)
    return Block(f"Against {baseline}", (), shown, charts, details)


def _costs(results: StudyResults) -> Table:
    """Mean seconds of the parts of a method's runs."""
    rows = []
    for method in results.methods:
        # A run has a row for each split, and runs share trunks: each run and each trunk counts once.
        runs = {row.key: row for row in results.rows if row.method == method}.values()
        trunks = {row.pretraining: row.seconds.get("pretrain") for row in runs if row.pretraining}
        parts = [
            list(trunks.values()),
            [row.seconds.get("finetune", row.seconds.get("classifier")) for row in runs],
            [row.seconds.get("evaluate") for row in runs],
        ]
        known = [[seconds for seconds in part if seconds] for part in parts]
        rows.append((method, *(f"{sum(part) / len(part):.0f} s" if part else "-" for part in known)))
    return Table(("method", "pretraining", "training", "scoring"), tuple(rows))
