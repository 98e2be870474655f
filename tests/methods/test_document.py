"""The tables of docs/methods.md against the registries of methods and trunks."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from pscl_hpc.config import Registry
from pscl_hpc.methods import METHODS, ReferencedMethodConfig
from pscl_hpc.models import TRUNKS

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/methods.md"


def table(key: str, registry: Registry[Any, Any], *, annotation: bool) -> str:
    """A row for each name: display name and first line of the docstring of its settings."""
    head = [f"`{key}`", "name", "description", *(["needs annotation"] if annotation else [])]
    rows = [head, ["---"] * len(head)]
    for name in registry.names:
        config = registry.config(name)
        row = [f"`{name}`", config.display_name, (inspect.getdoc(config) or "").splitlines()[0]]
        if annotation:
            row.append("yes" if issubclass(config, ReferencedMethodConfig) else "no")
        rows.append(row)
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


@pytest.mark.parametrize(
    ("marker", "expected"),
    [
        ("methods", table("method.name", METHODS, annotation=True)),
        ("trunks", table("model.name", TRUNKS, annotation=False)),
    ],
    ids=["methods", "trunks"],
)
def test_the_table_agrees_with_the_registry(marker: str, expected: str) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    found = text.partition(f"<!-- {marker} -->\n")[2].partition(f"<!-- end {marker} -->")[0]
    assert found == expected, (
        f"{DOCUMENT}: write this table between <!-- {marker} --> and <!-- end {marker} -->:\n\n{expected}"
    )
