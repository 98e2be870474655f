"""``config``: what it prints is a valid configuration with every key, and what it checks is checked as in a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from pscl_hpc.cli.main import main
from pscl_hpc.config import resolve_config, schema_of
from pscl_hpc.config.describe import meaning
from pscl_hpc.config.registry import registry_of
from pscl_hpc.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["config", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("method", METHODS.names)
def test_pretraining_keys_are_a_valid_configuration(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    tree = yaml.safe_load(printed(capsys, "pretrain", "--method", method))
    assert tree["method"]["name"] == method
    tree["data"]["archive"] = "a.h5"
    if "reference" in tree["method"]:
        tree["method"]["reference"]["ids"] = ["a/b"]
    minimal = {"data": {"archive": "a.h5"}, "method": {"name": method}}
    if "reference" in tree["method"]:
        minimal["method"]["reference"] = {"ids": ["a/b"]}
    assert resolve_config(tree, source="printed") == resolve_config(minimal, source="minimal")


def test_fine_tuning_keys_are_a_valid_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    tree = yaml.safe_load(printed(capsys, "finetune"))
    tree["data"]["archive"] = "a.h5"
    tree["references"] = ["a/b"]
    minimal = {"kind": "finetune", "data": {"archive": "a.h5"}, "references": ["a/b"]}
    assert resolve_config(tree, source="printed") == resolve_config(minimal, source="minimal")


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_every_key_has_a_meaning(kind: str) -> None:
    def missing(schema: type[BaseModel], prefix: str) -> list[str]:
        found = []
        for key, field in schema.model_fields.items():
            inner = field.annotation
            registry = registry_of(field)
            if registry is not None:
                for name in registry.names:
                    found += missing(registry.config(name), f"{prefix}{key}.")
            elif isinstance(inner, type) and issubclass(inner, BaseModel):
                found += missing(inner, f"{prefix}{key}.")
            elif not meaning(schema, key) and key not in ("kind", "name", "ce_weight", "dice_weight"):
                found.append(prefix + key)
        return found

    assert missing(schema_of(kind), "") == []


def test_a_study_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    tree = yaml.safe_load(printed(capsys, "study"))
    assert {"methods", "datasets", "budgets", "seeds"} <= tree.keys()


@pytest.mark.parametrize("file", ["pretrain/simclr.yaml", "demo/finetune.yaml", "studies/quick.yaml"])
def test_shipped_files_are_valid(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert file in printed(capsys, "check", str(ROOT / "configs" / file))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["check", "none.yaml"], "none.yaml"),
        (["check", str(ROOT / "configs/pretrain/simclr.yaml"), "method.clusters=3"], "method.clusters"),
        (["pretrain", "--method", "simcl"], "'simclr'"),
        (["pretrain", "--model", "u-net"], "--model"),
    ],
)
def test_mistakes_are_named(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", *arguments]) == 2
    assert named in capsys.readouterr().err
