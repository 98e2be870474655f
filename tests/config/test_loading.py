"""Configuration files, overrides, and the sentence for each mistake."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import create_model

from pscl_hpc.config import FinetuneConfig, PretrainConfig, load_config, resolve_config, to_yaml
from pscl_hpc.config.common import Strict
from pscl_hpc.config.loading import merge_trees
from pscl_hpc.config.methods import AnyMethod, ByolConfig
from pscl_hpc.errors import UserError
from pscl_hpc.study.config import load_study

ROOT = Path(__file__).resolve().parents[2]
BASE = "data: {archive: a.h5}\nmethod: {name: pscl-simclr, reference: {ids: [a/b]}}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pretrain.yaml"
    path.write_text(BASE)
    return path


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("schedule.step=5", "unknown key 'schedule.step'; did you mean 'steps'?"),
        ("method.temprature=1", "unknown key 'method.temprature'; did you mean 'temperature'?"),
        ("method.reference.idz=[a]", "unknown key 'method.reference.idz'; did you mean 'ids'?"),
        ("method.name=psclsimclr", "key 'method.name' is 'psclsimclr'; did you mean 'pscl-simclr'?"),
        ("batch_size=0", "key 'batch_size': input should be greater than or equal to 1, but it is 0"),
        ("batch_size=many", "key 'batch_size'"),
        ("views.size=[3,400]", "key 'views.size.0'"),
        ("method.temperature=-1", "key 'method.temperature'"),
        ("method.reference.ids=[]", "method.reference.ids names no annotated image"),
        ("method.scale_weights=[1,2]", "method.scale_weights needs 3 values"),
        ("method.projection=30", "must be a multiple of head_groups"),
        ("accumulate=3", "batch_size (8) must be a multiple of accumulate (3)"),
        ("model.widths=[8]", "widths needs at least two entries"),
        ("model.mean=[1,2]", "mean needs 1 or 1 values"),
        ("name='a/b'", "key 'name'"),
        ("seed=-1", "key 'seed'"),
        ("kind=pretraining", "kind is 'pretraining'; did you mean 'pretrain'?"),
        (
            "model.widths=[4,4,4,4,4,4,4,4,4,4]",
            "views.size is [376, 376] and the network halves its grid 9 times (model.widths), so windows need at "
            "least 512 pixels a side; enlarge views.size",
        ),
        ("nonsense", "'nonsense' is no override; write key=value"),
        ("batch_size.x=1", "key 'batch_size'"),
        ("data=[", "the value is not valid YAML"),
        ("seed=0x_", "the value is not valid YAML"),
        ("data={archive: a, archive: b}", "key 'archive' stands twice; keep one of them"),
        ("optimiser.lr=inf", "key 'optimiser.lr': input should be a finite number"),
        ("method.temperature=.inf", "key 'method.temperature': input should be a finite number"),
        ("model.mean=[.nan]", "key 'model.mean.0': input should be a finite number"),
        (
            "run=0012",
            "key 'run': input should be a valid string, but it is 10; quote it, on the command line",
        ),
        ("seed.a.b=1", "key 'seed'"),
    ],
)
def test_every_mistake_is_one_sentence(file: Path, override: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(file, [override])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [1, 2", "not valid YAML at line"),
        ("- a\n- b\n", "holds a list, not keys and values"),
        ("just text", "holds a str"),
        ("extends: gone.yaml\n", "gone.yaml: no such configuration file"),
        ("extends: bad.yaml\n", "extends itself"),
        ("extends: [a]\n", "extends must name one YAML file"),
        ("data: {}\nmethod: {name: simclr}\n", "key 'data.archive' is missing"),
        ("", "key 'data' is missing"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
        (
            "seed: 1\nname: x\nseed: 2\n",
            "key 'seed' stands twice, the second time at line 3; keep one of them",
        ),
        ("data:\n  archive: a\n  archive: b\n", "key 'archive' stands twice, the second time at line 3"),
        ("name: x\nseed: 0b_\n", "not valid YAML at line 2"),
        ("seed: !!float x\n", "not valid YAML at line 1"),
        (f"x: {'[' * 3000}{']' * 3000}\n", "not valid YAML"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"(bad|gone)\.yaml") as caught:
        load_config(path)
    assert sentence in str(caught.value)


FINETUNE = {"kind": "finetune", "data": {"archive": "a.h5"}, "references": ["a/b"]}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"crop": [64, 16], "model": {"widths": [4] * 6}},
            "crop is [64, 16] and the network halves its grid 5 times (model.widths), so windows need at least 32 "
            "pixels a side; enlarge crop",
        ),
        (
            {"crop": [16, 16], "model": {"widths": [4] * 5}, "batch_size": 1},
            "so a single window leaves one value of each feature, which has no batch statistics; enlarge crop or set "
            "batch_size=2",
        ),
        (
            {"loss": {"class_weights": [0, 0, 0], "dice_weight": 0}},
            "class_weights are all 0 and so is dice_weight",
        ),
        ({"references": []}, "references names no annotated image"),
        (
            {"loss": {"class_weights": "even"}},
            "key 'loss.class_weights': input should be 'uniform' or 'balanced'",
        ),
        (
            {"loss": {"class_weights": [1, -1]}},
            "key 'loss.class_weights.1': input should be greater than or equal to 0, but it is -1",
        ),
    ],
)
def test_mistakes_of_fine_tuning_are_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve_config({**FINETUNE, **changes}, source="test")
    assert sentence in str(caught.value)
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
        # A pretrained trunk brings its own widths, which are known when it is read.
        {"crop": [16, 16], "model": {"widths": [4] * 6}, "pretrained": "trunk.safetensors"},
        {"loss": {"class_weights": [0, 0, 0]}},
        {"loss": {"class_weights": [0, 1, 0], "dice_weight": 0}},
    ],
)
def test_what_just_fits_is_taken(changes: dict[str, Any]) -> None:
    assert isinstance(resolve_config({**FINETUNE, **changes}, source="test"), FinetuneConfig)


def test_a_reference_named_twice_is_one() -> None:
    config = resolve_config({**FINETUNE, "references": ["a/c", "a/b", "a/c"]}, source="test")
    assert isinstance(config, FinetuneConfig)
    assert config.references == ("a/c", "a/b")


def test_one_image_in_pretraining_needs_more_than_one_patch(file: Path) -> None:
    single = ["batch_size=1", "views.size=[16,16]", "model.widths=[4,4,4,4,4]"]
    # The reference is a second image of the pass.
    load_config(file, single)
    with pytest.raises(UserError, match=r"a single window leaves one value of each feature"):
        load_config(file, [*single, "method={name: moco}"])


def test_missing_file_folder_and_other_kind(tmp_path: Path, file: Path) -> None:
    with pytest.raises(UserError, match="no such configuration file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="is a folder"):
        load_config(tmp_path)
    with pytest.raises(UserError, match="this is a pretrain configuration; use 'pscl-hpc pretrain'"):
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
def test_a_name_of_digits_is_text_where_it_is_quoted_or_a_date(file: Path, name: str) -> None:
    assert load_config(file, [f"name={name}"]).name == name.strip("'\"")
    file.write_text(f"{BASE}name: {name}\n")
    assert load_config(file).name == name.strip("'\"")


def test_what_an_anchor_brings_may_be_replaced(file: Path) -> None:
    file.write_text(
        "data: {archive: a.h5}\nmethod: {name: simclr}\n"
        "optimiser: &common {name: adam, lr: 1.0e-2}\nschedule: {steps: 3}\n"
    )
    assert load_config(file, ["optimiser={<<: {lr: 2}, lr: 3}"]).optimiser.lr == 3


def test_extends_merges_and_another_method_starts_afresh(tmp_path: Path, file: Path) -> None:
    top = tmp_path / "top.yaml"
    top.write_text("extends: pretrain.yaml\nschedule: {steps: 3}\nmethod: {name: simclr}\n")
    config = load_config(top)
    assert isinstance(config, PretrainConfig)
    assert config.method.name == "simclr"
    assert config.schedule.steps == 3
    assert config.data.archive == "a.h5"


@pytest.mark.parametrize(
    ("base", "top", "merged"),
    [
        ({"lr": 3}, {"name": "adam", "weight_decay": 1}, {"lr": 3, "name": "adam", "weight_decay": 1}),
        ({"name": "adam", "weight_decay": 1}, {"lr": 3}, {"lr": 3, "name": "adam", "weight_decay": 1}),
        ({"name": "adam", "lr": 1}, {"name": "adam", "lr": 3}, {"name": "adam", "lr": 3}),
        ({"name": "adam", "weight_decay": 1}, {"name": "lars", "lr": 3}, {"name": "lars", "lr": 3}),
        ({"a": {"name": "x", "k": 1}, "lr": 3}, {"a": {"name": "y"}}, {"a": {"name": "y"}, "lr": 3}),
    ],
)
def test_a_section_is_another_one_where_both_sides_have_a_name(
    base: dict[str, Any], top: dict[str, Any], merged: dict[str, Any]
) -> None:
    assert merge_trees({"section": base}, {"section": top}) == {"section": merged}


def sections(model: type[Strict]) -> Iterator[tuple[type[Strict], str, Strict]]:
    """Every section of a configuration: where it is, and its default there."""
    for key, field in model.model_fields.items():
        if isinstance(field.default, Strict):
            if field.annotation is type(field.default):
                yield model, key, field.default
            yield from sections(type(field.default))


@pytest.mark.parametrize(
    "kind",
    [
        kind
        for kind in (PretrainConfig, FinetuneConfig, *get_args(AnyMethod))
        if any(isinstance(field.default, Strict) for field in kind.model_fields.values())
    ],
)
def test_a_section_that_gives_one_key_keeps_its_own_default_of_the_others(kind: type[Strict]) -> None:
    found_sections = list(sections(kind))
    assert found_sections
    for model, section, default in found_sections:
        for key, value in default.model_dump().items():
            # A model of this one key: the rest of the configuration has requirements of its own.
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
    with pytest.raises(UserError, match=r"cannot be read \(.*\)"):
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
    }
    kind = path.parent.name
    if kind == "demo":
        load_config(path)
        return
    if kind == "studies":
        load_study(path)
        return
    annotated = kind == "finetune" or (path.stem.startswith("pscl") and path.stem != "pscl-clustered")
    extra = needed[kind] if annotated else []
    config = load_config(path, extra)
    assert isinstance(config, PretrainConfig if kind == "pretrain" else FinetuneConfig)


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
