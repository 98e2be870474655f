"""When two runs are the same."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pscl_hpc.config import resolve_config
from pscl_hpc.study.keys import run_key

keys = st.sampled_from(
    [
        ("seed", 11),
        ("batch_size", 6),
        ("schedule", {"steps": 5}),
        ("views", {"size": [32, 48]}),
        ("method", {"name": "simclr", "temperature": 0.4}),
        ("runtime", {"precision": "bf16"}),
        ("data", {"archive": "a.h5", "splits": ["train"]}),
        ("checkpoint", {"keep_best": False}),
    ]
)


same = st.sampled_from(
    [
        ("run", "elsewhere"),
        ("name", "other"),
        ("log", {"every_steps": 3}),
        ("runtime", {"threads": 2, "workers": 3, "device": "cpu"}),
        ("data", {"archive": "moved.h5"}),
    ]
)


@given(st.lists(keys, max_size=4), st.lists(same, max_size=3), st.sampled_from(["", "1" * 64, "2" * 64]))
@settings(deadline=None)
def test_the_key_is_that_of_the_content(
    changes: list[tuple[str, Any]], elsewhere: list[tuple[str, Any]], fingerprint: str
) -> None:
    base: dict[str, Any] = {"data": {"archive": "a.h5"}, "method": {"name": "simclr"}}
    changed = {**base, **dict(changes)}
    moved = dict(changed)
    for key, value in elsewhere:
        moved[key] = {**moved.get(key, {}), **value} if isinstance(value, dict) else value
    first, second, third = (resolve_config(tree, source="test") for tree in (base, changed, moved))
    assert run_key(second, fingerprint) == run_key(third, fingerprint)
    assert (run_key(first, fingerprint) == run_key(second, fingerprint)) == (first == second)
    assert run_key(first, fingerprint) != run_key(first, "3" * 64)


@pytest.mark.parametrize(
    "kind",
    [{"kind": "finetune"}, {"kind": "classifier", "features": {"name": "trunk"}, "head": {"name": "linear"}}],
)
def test_the_key_of_a_model_is_that_of_its_trunk_and_not_of_its_place(kind: dict[str, Any]) -> None:
    tree = {**kind, "data": {"archive": "a.h5"}, "references": ["alloy/t0"]}
    here, there = (
        resolve_config({**tree, "pretrained": path}, source="test") for path in ("runs/a", "runs/b")
    )
    assert run_key(here, "f", "trunk") == run_key(there, "f", "trunk")
    assert run_key(here, "f", "trunk") != run_key(here, "f", "another")


def test_the_key_changes_with_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {"data": {"archive": "a.h5"}, "method": {"name": "simclr"}}
    config = resolve_config(tree, source="test")
    before = run_key(config, "f")
    monkeypatch.setattr("pscl_hpc.study.keys.__version__", "0.0.0")
    assert run_key(config, "f") != before


def test_the_key_of_a_pretraining_depends_on_the_trunk_it_begins_with() -> None:
    tree = {"data": {"archive": "a.h5"}, "method": {"name": "simclr"}}
    new, further = (resolve_config({**tree, "pretrained": path}, source="test") for path in ("", "runs/a"))
    assert run_key(new, "f") != run_key(further, "f")
