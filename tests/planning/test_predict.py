"""Predictions against hand computation, and properties that hold for all numbers; the command ``plan``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pscl_hpc.cli.main import main
from pscl_hpc.config import load_config, to_yaml
from pscl_hpc.errors import UserError
from pscl_hpc.planning import (
    Contrast,
    Links,
    Rates,
    load_rates,
    measured_keys,
    predict,
    save_rates,
)
from pscl_hpc.pretraining.config import PretrainConfig
from tests.planning.tiny import tiny

LINKS = Links(per_node=4, intra_bandwidth=100.0, inter_bandwidth=10.0, intra_latency=0.1, inter_latency=1.0)


def rates(**changes: object) -> Rates:
    values: dict[str, object] = {
        "device": "a device",
        "keys": {},
        "references": 1,
        "step_fixed": 0.5,
        "step_per_image": 0.25,
        "forward_fixed": 0.125,
        "forward_per_image": 0.0625,
        "memory_fixed": 1000.0,
        "memory_per_image": 100.0,
        "contrasts": (Contrast(1.0, 2.0, 8, 4, 1e-3),),
        "symmetric": False,
        "gradient_bytes": 400,
        "normalisations": 3,
        "passes": 2,
        "measured": {},
    }
    return Rates(**{**values, **changes})  # type: ignore[arg-type]


def test_one_device_is_what_was_measured() -> None:
    found = predict(rates(), LINKS, 1, 4)
    rows = 2 * (1 + 2 * 4)
    assert found.step == pytest.approx(0.5 + 0.25 * 4 + 1e-3 * rows**2)
    assert (found.gather, found.reduce, found.normalise) == (0, 0, 0)
    assert found.efficiency == 1
    assert found.memory == 1400


def test_two_nodes_by_hand() -> None:
    found = predict(rates(symmetric=True), LINKS, 8, 4)
    rows = 18
    assert found.nodes == 2
    assert found.loss == pytest.approx(1e-3 * rows * (rows + 2 * 7 * rows)), "rows of others have no symmetry"
    latency = 3 * 0.1 + 1.0
    size = 8 * rows * (8 * 4 + 16)
    assert found.gather == pytest.approx(7 / 8 * size / 10 + latency + 3 * latency)
    assert found.reduce == pytest.approx(2 * (7 / 8 * 400 / 10 + latency))
    assert found.normalise == pytest.approx(2 * 3 * 2 * 2 * latency)
    assert found.memory == 1400 + 7 * rows * 48
    assert found.images_per_second == pytest.approx(32 / found.step)


def test_each_part_of_an_accumulated_batch_is_one_pass() -> None:
    whole, parts = predict(rates(), LINKS, 8, 2), predict(rates(), LINKS, 8, 6, accumulate=3)
    for name in ("compute", "loss", "gather", "normalise"):
        assert getattr(parts, name) == pytest.approx(3 * getattr(whole, name))
    assert parts.reduce == whole.reduce, "the gradients of all parts are summed at once"
    assert parts.memory == whole.memory + 400, "the accumulated gradients stay in memory"
    assert parts.images == 6


def test_exact_parts_by_hand() -> None:
    found = predict(rates(), LINKS, 2, 6, parts=3)
    part, rows = predict(rates(), LINKS, 1, 2), 2 * (1 + 2 * 2)
    assert found.compute == pytest.approx(3 * part.compute + 2 * (0.125 + 0.0625 * 2)), "the last part once"
    assert found.loss == pytest.approx(1e-3 * (3 * rows) * (2 * 3 * rows)), "the rows of all parts and ranks"
    assert found.reduce == predict(rates(), LINKS, 2, 2).reduce
    own, others = 2 * 2 * rows * 8 * 4, 3 * rows * (8 * 4 + 16)
    assert found.memory == part.memory + 400 + own + others


def test_batch_statistics_per_rank_cost_no_messages() -> None:
    apart = predict(rates(), LINKS, 8, 4, synchronised=False)
    assert apart.normalise == 0
    assert apart.step == pytest.approx(predict(rates(), LINKS, 8, 4).step - 2 * 3 * 2 * 2 * 1.3)


@given(st.integers(1, 10), st.floats(1, 1000), st.floats(0, 1e-3), st.booleans())
def test_more_devices_never_make_a_step_shorter(
    power: int, images: float, square: float, symmetric: bool
) -> None:
    known = rates(contrasts=(Contrast(1.0, 2.0, 8, 4, square),), symmetric=symmetric)
    few, many = (predict(known, LINKS, 2 ** (power - 1), images), predict(known, LINKS, 2**power, images))
    assert many.step >= few.step
    assert many.memory >= few.memory
    assert 0 < many.efficiency <= few.efficiency <= 1


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"contrasts": [], "size": [1, 2]}', '{"contrasts": [{"a": 1}]}']
)
def test_a_file_without_rates_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rates.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"rates\.json"):
        load_rates(path)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, file = tmp_path / "c.yaml", tmp_path / "rates.json"
    config.write_text(
        "kind: pretrain\ndata: {archive: x.h5}\nviews: {size: [64, 64]}\nbatch_size: 64\n"
        "method: {name: pscl-simclr, reference: {ids: [a/b]}}\n"
    )
    arguments = ["plan", "--config", str(config), "--rates", str(file)]
    assert main(arguments) == 2
    assert f"{file}" in capsys.readouterr().err
    loaded = load_config(config)
    assert isinstance(loaded, PretrainConfig)
    save_rates(file, rates(keys=measured_keys(loaded)))
    assert main([*arguments, "--nodes", "2", "--gpus", "4", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["asked"]["ranks"] == 8
    assert answer["asked"]["images"] == 8
    assert [line["ranks"] for line in answer["sweep"]] == [2**i for i in range(11)]
    assert main([*arguments, "--batch", "65"]) == 2
    shown = capsys.readouterr().err
    assert "--batch 65" in shown
    assert "72" in shown
    assert main([*arguments, "views.size=[32,32]"]) == 2
    assert "views.size [64, 64], not [32, 32]" in capsys.readouterr().err
    assert main([*arguments, "--batch", "64"]) == 0
    assert "1024" in capsys.readouterr().out


def test_every_assumption_is_shown_with_its_source(
    planned: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = {"date": "2026-11-21", "disturbed": "it took long"}
    save_rates(tmp_path / "rates.json", rates(keys=measured_keys(tiny()), measured=measured))
    assert main([*planned, "--json", "--inter", "25", "--intra-us", "3"]) == 0
    rests = json.loads(capsys.readouterr().out)["assumptions"]
    known = {each["name"]: (each["value"], each["source"]) for each in rests}
    assert known["bandwidth inside a node"] == ("300 GB/s", "default, not measured")
    assert known["bandwidth between nodes"] == ("25 GB/s", "given")
    assert known["latency of a hop inside a node"] == ("3 us", "given")
    assert known["latency of a hop between nodes"] == ("25 us", "default, not measured")
    assert known["devices per node"] == ("8", "default, not measured")
    source = known["step and memory of one device"][1]
    assert source == "measured on a device, 2026-11-21, on a busy machine (it took long)"
    assert main(planned) == 0
    text = capsys.readouterr().out
    assert all(f"  {name}: " in text for name in known)


@pytest.fixture
def planned(tmp_path: Path) -> list[str]:
    """A plan for which there are rates."""
    config = tmp_path / "c.yaml"
    config.write_text(to_yaml(tiny(batch_size=64)))
    save_rates(tmp_path / "rates.json", rates(keys=measured_keys(tiny())))
    return ["plan", "--config", str(config), "--rates", str(tmp_path / "rates.json")]


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("model.widths=[4,8,16]", "model.widths [4, 8, 8], not [4, 8, 16]"),
        ("method.templates_per_class=2", "method.templates_per_class"),
        ("runtime.precision=bf16", "runtime.precision fp32, not bf16"),
        ("runtime.activation_checkpointing=true", "runtime.activation_checkpointing False, not True"),
        ("optimiser.name=adamw", "optimiser.name adam, not adamw"),
        ("method.reference.per_batch=4", "1 references on one GPU, not 0.5 or 4"),
    ],
)
def test_rates_of_another_configuration_are_refused(
    planned: list[str], capsys: pytest.CaptureFixture[str], key: str, named: str
) -> None:
    assert main([*planned, key]) == 2
    shown = capsys.readouterr().err
    assert "rates.json" in shown
    assert named in shown


def test_keys_without_effect_on_rates_are_accepted_and_the_others_counted(
    planned: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(*keys: str) -> dict[str, float]:
        assert main([*planned, "--json", *keys]) == 0
        asked: dict[str, float] = json.loads(capsys.readouterr().out)["asked"]
        return asked

    plain = ask()
    assert ask("data.archive=b.h5", "views.jitter.hue=0", "method.reference.per_batch=8") == plain
    assert ask("runtime.sync_batchnorm=false")["normalise"] == 0 < plain["normalise"]
    assert ask("accumulate=2")["normalise"] == 2 * plain["normalise"]
    assert main([*planned, "accumulate=2", "--batch", "8"]) == 2
    shown = capsys.readouterr().err
    assert "--batch 8 " in shown
    assert "16" in shown


def test_a_batch_in_exact_parts(planned: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    exact = [*planned, "accumulate=exact", "part_size=4", "method.reference.per_batch=16"]
    assert main([*exact, "--json"]) == 0
    asked = json.loads(capsys.readouterr().out)["asked"]
    assert asked["compute"] == pytest.approx(2 * (0.5 + 0.25 * 4) + 0.125 + 0.0625 * 4), (
        "8 images on each GPU"
    )
    assert main([*exact, "--batch", "72"]) == 2
    shown = capsys.readouterr().err
    assert "parts of 4 images" in shown
    assert "96" in shown
    assert main([*exact, "method.reference.per_batch=32"]) == 2
    assert "1 references in a part, not 2" in capsys.readouterr().err


def test_nothing_is_measured_that_cannot_be_written(
    planned: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pscl_hpc.planning.measure_rates", lambda *_: pytest.fail("measured"))
    for file in (tmp_path / "gone" / "rates.json", tmp_path):
        assert main([*planned, "--measure", str(file)]) == 2
        assert f"--measure {file}" in capsys.readouterr().err
    for numbers in ("2, 2", "1,2", "2", "a,b"):
        assert main([*planned, "--measure", str(tmp_path / "r.json"), "--images", numbers]) == 2
        assert f"--images is '{numbers}'" in capsys.readouterr().err
    assert main([*planned, "--images", "2,4"]) == 2
    assert "--measure" in capsys.readouterr().err
    mine = tmp_path / "c.yaml"
    before = mine.read_bytes()
    assert main([*planned, "--measure", str(mine)]) == 2
    assert f"--measure {mine}" in capsys.readouterr().err
    assert mine.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [{"step_fixed": None}, {"gradient_bytes": float("nan")}, {"normalisations": [1]}, {"references": "x"},
     {"contrasts": [{"width": 3}]}, {"contrasts": 3}, {"keys": 3}, {"more": 1}],
)  # fmt: skip
def test_a_file_of_rates_with_an_invalid_value_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    file = tmp_path / "rates.json"
    save_rates(file, rates())
    assert load_rates(file) == rates()
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(UserError, match=r"rates\.json"):
        load_rates(file)


def test_infinite_latencies_are_refused(planned: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*planned, "--json", "--inter-us", "inf"]) == 2
    assert "--inter-us" in capsys.readouterr().err


def test_rates_are_measured_again_into_their_file(
    planned: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pscl_hpc.planning.measure_rates", lambda *_: rates(device="another"))
    file = tmp_path / "rates.json"
    assert main([*planned, "--measure", str(file), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["rates"], shown["device"], shown["step_per_image"]) == (str(file), "another", 0.25)
    assert load_rates(file).device == "another"
    busy = rates(device="another", measured={"disturbed": "the steps took long"})
    monkeypatch.setattr("pscl_hpc.planning.measure_rates", lambda *_: busy)
    assert main([*planned, "--measure", str(file)]) == 0
    assert "busy: the steps took long" in capsys.readouterr().err
