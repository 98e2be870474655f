"""Configuration files, overrides, and errors that name the key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import create_model

from pscl_hpc.config import NamedConfig, Registry, Strict, load_config, merge_trees, resolve_config, to_yaml
from pscl_hpc.errors import UserError
from pscl_hpc.methods import METHODS
from pscl_hpc.methods.byol import ByolConfig
from pscl_hpc.models import TRUNKS
from pscl_hpc.pretraining.config import PretrainConfig
from pscl_hpc.segmentation.classifier_config import ClassifierConfig
from pscl_hpc.segmentation.config import FinetuneConfig
from pscl_hpc.study.config import load_study

ROOT = Path(__file__).resolve().parents[2]
BASE = "data: {archive: a.h5}\nmethod: {name: pscl-simclr, reference: {ids: [a/b]}}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pretrain.yaml"
    path.write_text(BASE)
    return path


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("schedule.step=5", ["schedule.step", "'steps'"]),
        ("method.temprature=1", ["method.temprature", "'temperature'"]),
        ("method.reference.idz=[a]", ["method.reference.idz", "'ids'"]),
        ("method.name=psclsimclr", ["method.name", "'pscl-simclr'"]),
        ("model.name=u-net", ["model.name", "'unet'"]),
        ("batch_size=0", ["batch_size': must be at least 1, but it is 0"]),
        ("batch_size=many", ["command line: key 'batch_size': must be a whole number, but it is 'many'"]),
        (
            "method.temperature=x",
            ["method.temperature': must be a number, with a decimal point, but it is 'x'"],
        ),
        ("views.size=[3,400]", ["views.size.0"]),
        ("method.temperature=-1", ["method.temperature"]),
        ("method.reference.ids=[]", ["method.reference.ids"]),
        ("method.scale_weights=[1,2]", ["method.scale_weights", "3"]),
        ("method.projection=30", ["head_groups", "30"]),
        ("accumulate=3", ["batch_size", "8", "accumulate"]),
        ("model.widths=[8]", ["widths"]),
        ("model.mean=[1,2]", ["mean", "1"]),
        ("name='a/b'", ["name"]),
        ("seed=-1", ["seed"]),
        ("kind=pretraining", ["kind", "'pretrain'"]),
        ("model.widths=[4,4,4,4,4,4,4,4,4,4]", ["views.size", "376", "512", "model"]),
        ("nonsense", ["nonsense", "key=value"]),
        ("batch_size.x=1", ["batch_size"]),
        ("data=[", ["data=["]),
        ("seed=0x_", ["seed=0x_"]),
        ("data={archive: a, archive: b}", ["archive", "twice"]),
        ("optimiser.lr=inf", ["optimiser.lr", "finite"]),
        ("method.temperature=.inf", ["method.temperature", "finite"]),
        ("model.mean=[.nan]", ["model.mean.0", "finite"]),
        ("run=0012", ["run", "quote"]),
        ("seed.a.b=1", ["seed"]),
    ],
)
def test_every_error_is_one_line_that_names_the_key(file: Path, override: str, named: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_config(file, [override])
    for word in named:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a: [1, 2", ["bad.yaml", "line"]),
        ("- a\n- b\n", ["bad.yaml", "list"]),
        ("just text", ["bad.yaml", "str"]),
        ("extends: gone.yaml\n", ["gone.yaml"]),
        ("extends: bad.yaml\n", ["bad.yaml", "extends"]),
        ("extends: [a]\n", ["bad.yaml", "extends"]),
        ("data: {}\nmethod: {name: simclr}\n", ["bad.yaml", "data.archive"]),
        ("", ["bad.yaml", "'data'"]),
        ("!!python/object/apply:os.system ['true']", ["bad.yaml"]),
        ("seed: 1\nname: x\nseed: 2\n", ["bad.yaml", "'seed'", "line 3"]),
        ("data:\n  archive: a\n  archive: b\n", ["bad.yaml", "'archive'", "line 3"]),
        ("name: x\nseed: 0b_\n", ["bad.yaml", "line 2"]),
        ("seed: !!float x\n", ["bad.yaml", "line 1"]),
        (f"x: {'[' * 3000}{']' * 3000}\n", ["bad.yaml"]),
    ],
)
def test_broken_files_are_named(tmp_path: Path, text: str, named: list[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(path)
    for word in named:
        assert word in str(caught.value)


FINETUNE = {"kind": "finetune", "data": {"archive": "a.h5"}, "references": ["a/b"]}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"crop": [64, 16], "model": {"widths": [4] * 6}}, ["crop", "[64, 16]", "32"]),
        ({"crop": [16, 16], "model": {"widths": [4] * 5}, "batch_size": 1}, ["crop", "batch_size=2"]),
        ({"loss": {"class_weights": [0, 0, 0], "dice_weight": 0}}, ["class_weights", "dice_weight"]),
        ({"references": []}, ["references"]),
        ({"loss": {"class_weights": "even"}}, ["loss.class_weights", "balanced"]),
        ({"loss": {"class_weights": [1, -1]}}, ["loss.class_weights.1", "-1"]),
        # Keys of pretraining, which would have no effect here.
        ({"runtime": {"kernels": "chunked"}}, ["runtime.kernels"]),
        ({"checkpoint": {"keep_best": True}}, ["checkpoint.keep_best"]),
        ({"log": {"purity": True}}, ["log.purity"]),
        ({"method": {"name": "simclr"}}, ["method"]),
    ],
)
def test_errors_of_fine_tuning_name_the_key(changes: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        resolve_config({**FINETUNE, **changes}, source="test")
    for word in named:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"crop": [32, 32], "model": {"widths": [4] * 6}, "batch_size": 2},
        {"crop": [16, 32], "model": {"widths": [4] * 5}, "batch_size": 1},
        {
            "crop": [16, 16],
            "model": {"widths": [4] * 5},
            "batch_size": 1,
            "semi_supervised": {"batch_size": 1},
        },
        # The trunk of pretrained weights is not known before they are read.
        {"crop": [16, 16], "pretrained": "trunk.safetensors"},
        {"loss": {"class_weights": [0, 0, 0]}},
        {"loss": {"class_weights": [0, 1, 0], "dice_weight": 0}},
    ],
)
def test_limiting_cases_are_accepted(changes: dict[str, Any]) -> None:
    assert isinstance(resolve_config({**FINETUNE, **changes}, source="test"), FinetuneConfig)


def test_a_reference_named_twice_is_one() -> None:
    config = resolve_config({**FINETUNE, "references": ["a/c", "a/b", "a/c"]}, source="test")
    assert isinstance(config, FinetuneConfig)
    assert config.references == ("a/c", "a/b")


def test_one_image_in_pretraining_needs_more_than_one_patch(file: Path) -> None:
    single = ["batch_size=1", "views.size=[16,16]", "model.widths=[4,4,4,4,4]"]
    # The reference is a second image in the forward pass.
    load_config(file, single)
    with pytest.raises(UserError, match="batch_size"):
        load_config(file, [*single, "method={name: moco}"])


def test_missing_file_folder_and_other_kind(tmp_path: Path, file: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        load_config(tmp_path)
    with pytest.raises(UserError, match="pretrain"):
        load_config(file.with_name("pretrain.yaml"), ["kind=pretrain"], kind="finetune")


def test_overrides_have_yaml_types_and_later_ones_win(file: Path) -> None:
    config = load_config(
        file, ["optimiser.lr=1e-3", "schedule.steps=5", "schedule.steps=7", "data.splits=[train]"]
    )
    assert isinstance(config, PretrainConfig)
    assert config.optimiser.lr == 1e-3
    assert config.schedule.steps == 7
    assert config.data.splits == ("train",)


@pytest.mark.parametrize("name", ["'0012'", '"1e5"', "2026-11-21", "2026-02-30", "x"])
def test_a_name_is_text_if_it_is_quoted_or_a_date(file: Path, name: str) -> None:
    assert load_config(file, [f"name={name}"]).name == name.strip("'\"")
    file.write_text(f"{BASE}name: {name}\n")
    assert load_config(file).name == name.strip("'\"")


@pytest.mark.parametrize(
    "overrides", [["method.name=pscl-clustered"], ["method.clusters=3", "method.name=pscl-clustered"]]
)
def test_another_method_on_the_command_line_drops_the_keys_of_the_old_one(
    file: Path, overrides: list[str]
) -> None:
    config = load_config(file, overrides)
    assert isinstance(config, PretrainConfig)
    assert config.method == METHODS.config("pscl-clustered")(clusters=3 if len(overrides) > 1 else 6)  # type: ignore[call-arg]


def test_a_key_of_an_anchor_can_be_replaced(file: Path) -> None:
    file.write_text(
        "data: {archive: a.h5}\nmethod: {name: simclr}\n"
        "optimiser: &common {name: adam, lr: 1.0e-2}\nschedule: {steps: 3}\n"
    )
    assert load_config(file, ["optimiser={<<: {lr: 2}, lr: 3}"]).optimiser.lr == 3


def test_extends_merges_sections_except_another_method(tmp_path: Path, file: Path) -> None:
    top = tmp_path / "top.yaml"
    top.write_text("extends: pretrain.yaml\nschedule: {steps: 3}\nmethod: {name: simclr}\n")
    config = load_config(top)
    assert isinstance(config, PretrainConfig)
    assert config.method.name == "simclr"
    assert config.schedule.steps == 3
    assert config.data.archive == "a.h5"


@pytest.mark.parametrize(
    ("key", "base", "top", "merged"),
    [
        ("method", {"lr": 3}, {"name": "a", "x": 1}, {"lr": 3, "name": "a", "x": 1}),
        ("method", {"name": "a", "x": 1}, {"lr": 3}, {"name": "a", "x": 1, "lr": 3}),
        ("method", {"name": "a", "lr": 1}, {"name": "a", "lr": 3}, {"name": "a", "lr": 3}),
        ("method", {"name": "a", "x": 1}, {"name": "b", "lr": 3}, {"name": "b", "lr": 3}),
        ("optimiser", {"name": "adam", "lr": 1}, {"name": "adamw"}, {"name": "adamw", "lr": 1}),
    ],
)
def test_only_another_method_or_trunk_replaces_a_section(
    key: str, base: dict[str, Any], top: dict[str, Any], merged: dict[str, Any]
) -> None:
    assert merge_trees({key: base}, {key: top}) == {key: merged}


def sections(model: type[Strict]) -> Iterator[tuple[type[Strict], str, Strict]]:
    """Every section of a configuration with its place and its default."""
    for key, field in model.model_fields.items():
        if isinstance(field.default, Strict):
            if field.annotation is type(field.default):
                yield model, key, field.default
            yield from sections(type(field.default))


@pytest.mark.parametrize(
    "kind",
    [
        kind
        for kind in (
            PretrainConfig,
            FinetuneConfig,
            *map(METHODS.config, METHODS.names),
            *map(TRUNKS.config, TRUNKS.names),
        )
        if any(isinstance(field.default, Strict) for field in kind.model_fields.values())
    ],
)
def test_a_section_that_gives_one_key_keeps_its_own_default_of_the_others(kind: type[Strict]) -> None:
    found_sections = list(sections(kind))
    assert found_sections
    for model, section, default in found_sections:
        for key, value in default.model_dump().items():
            # A model with this key only, because other keys have requirements of their own.
            alone = create_model(
                "Alone", __base__=Strict, **{section: (type(default), model.model_fields[section])}
            )
            found = getattr(alone.model_validate({section: {key: value}}), section)
            assert found == default, f"{model.__name__}.{section}.{key}"


def test_the_defaults_of_fine_tuning_survive_a_part_of_their_section() -> None:
    tree = {"kind": "finetune", "data": {"archive": "a.h5"}, "references": ["a/b"]}
    parts = {"optimiser": {"clip_norm": 1}, "schedule": {"warmup_steps": 5}, "jitter": {"gamma": 0.3}}
    config = resolve_config({**tree, **parts}, source="test")
    assert isinstance(config, FinetuneConfig)
    assert (config.optimiser.lr, config.optimiser.clip_norm) == (1e-3, 1)
    assert (config.schedule.steps, config.schedule.warmup_steps) == (300, 5)
    assert (config.jitter.brightness, config.jitter.hue, config.jitter.gamma) == (0.08, 0.02, 0.3)
    byol = resolve_config(
        {"data": {"archive": "a.h5"}, "method": {"name": "byol", "momentum": {"start": 0.9}}}, source="test"
    )
    assert isinstance(byol, PretrainConfig)
    assert isinstance(byol.method, ByolConfig)
    assert (byol.method.momentum.start, byol.method.momentum.schedule) == (0.9, "cosine")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="/proc/self/mem"):
        load_config(Path("/proc/self/mem"))  # an input/output error, for root too


def test_round_trip_through_yaml(file: Path, tmp_path: Path) -> None:
    config = load_config(file, ["views.size=[64,48]", "method.purity=0.9"])
    copy = tmp_path / "copy.yaml"
    copy.write_text(to_yaml(config))
    assert load_config(copy) == config


@settings(max_examples=50, deadline=None)
@given(
    steps=st.integers(1, 10**7),
    lr=st.floats(1e-8, 10, allow_nan=False),
    size=st.tuples(st.integers(16, 4096), st.integers(16, 4096)),
    widths=st.lists(st.integers(1, 512), min_size=2, max_size=9),
    name=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,20}\Z"),
)
def test_any_valid_configuration_survives_yaml(
    steps: int, lr: float, size: tuple[int, int], widths: list[int], name: str
) -> None:
    tree = {
        "kind": "pretrain",
        "name": name,
        "data": {"archive": "a.h5"},
        # A window of 16 pixels can be halved four times, to one.
        "model": {"widths": widths[: min(size).bit_length()]},
        "views": {"size": list(size)},
        "method": {"name": "simclr"},
        "schedule": {"steps": steps},
        "optimiser": {"lr": lr},
    }
    config = resolve_config(tree, source="test")
    assert resolve_config(yaml.safe_load(to_yaml(config)), source="test") == config


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_shipped_configurations_are_valid(path: Path) -> None:
    needed = {
        "pretrain": ["method.reference.ids=[a/b]"],
        "finetune": ["references=[a/b]"],
        "classifier": ["references=[a/b]"],
    }
    kind = path.parent.name
    if kind == "demo":
        load_config(path)
        return
    if kind == "studies":
        load_study(path, [] if "synthetic" in path.read_text() else ["archive=alloys.h5"])
        return
    annotated = kind in ("finetune", "classifier") or (
        path.stem.startswith("pscl") and path.stem != "pscl-clustered"
    )
    extra = needed[kind] if annotated else []
    config = load_config(path, extra)
    schemas = {"pretrain": PretrainConfig, "finetune": FinetuneConfig, "classifier": ClassifierConfig}
    assert isinstance(config, schemas[kind])


def test_paper_preset_has_the_released_settings() -> None:
    config = load_config(ROOT / "configs/pretrain/pscl-simclr-paper.yaml", ["method.reference.ids=[a/b]"])
    assert isinstance(config, PretrainConfig)
    method = config.method
    assert method.name == "pscl-simclr"
    assert (method.template_rule, method.matching, method.exclusion, method.antialias) == (
        "released",
        "dot",
        "released",
        False,
    )
    assert (method.temperature, method.patch_weight, method.templates_per_class) == (0.5, 0.7, 4)
    assert (config.batch_size, config.optimiser.name, config.optimiser.lr, config.seed) == (
        8,
        "adam",
        1e-4,
        10,
    )
    assert config.views.size == (376, 376)


def test_a_module_that_cannot_be_imported_fails_at_every_lookup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "broken_alternatives"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "module.py").write_text("raise RuntimeError('broken')\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry: Registry[NamedConfig, object] = Registry("broken_alternatives", default="a")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="broken"):
            registry.names  # noqa: B018


def test_shipped_configurations_are_found_outside_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "configs/finetune/default.yaml"
    shipped = load_config(name, ["references=[a/b]", "data.archive=a.h5"])
    own = tmp_path / "own.yaml"
    own.write_text(f"extends: {name}\nreferences: [a/b]\ndata: {{archive: a.h5}}\n")
    assert load_config(own) == shipped
    assert load_config(ROOT / name, ["references=[a/b]", "data.archive=a.h5"]) == shipped
    (tmp_path / "configs/finetune").mkdir(parents=True)
    (tmp_path / name).write_text("kind: finetune\nseed: 5\nreferences: [a/b]\ndata: {archive: a.h5}\n")
    assert load_config(name).seed == 5, "the file of the user's own folder is nearer"
    for wrong in ("configs/finetune/defalt.yaml", "configs/../pyproject.toml"):
        with pytest.raises(UserError, match="no such configuration file"):
            load_config(wrong)
