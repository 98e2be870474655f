"""The trunk of timm's encoders, with a stand-in for timm that follows its interface."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pscl_hpc.config import load_config, resolve_config
from pscl_hpc.errors import UserError
from pscl_hpc.models import build_trunk, load_trunk, save_trunk
from pscl_hpc.models.timm_encoder import TimmConfig, TimmTrunk, _encoder_maps
from pscl_hpc.pretraining import pretrain
from pscl_hpc.segmentation import evaluate, finetune
from pscl_hpc.segmentation.config import FinetuneConfig
from tests.helpers import small_archive, small_config

from . import fake_timm


@pytest.fixture(autouse=True)
def timm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    _encoder_maps.cache_clear()
    monkeypatch.setitem(sys.modules, "timm", fake_timm.module())
    yield
    _encoder_maps.cache_clear()


def config(encoder: str, **changes: Any) -> TimmConfig:
    return TimmConfig(**{"name": "timm", "encoder": encoder, "init": "random", **changes})


def make(encoder: str, **changes: Any) -> TimmTrunk:
    torch.manual_seed(0)
    trunk = build_trunk(config(encoder, **changes))
    assert isinstance(trunk, TimmTrunk)
    return trunk


@pytest.mark.parametrize("encoder", ["conv", "last", "patches"])
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (14, 61)])
def test_maps_have_the_stated_channels_and_strides(encoder: str, size: tuple[int, int]) -> None:
    trunk = make(encoder).eval()
    with torch.no_grad():
        maps = trunk.encode(torch.rand(2, 1, *size))
        features = trunk.decode(maps)
    promised = trunk.maps
    for found, shape in zip((*maps, *features.scales), (*promised.encoder, *promised.scales), strict=True):
        assert found.shape == (2, shape.channels, *(-(-side // shape.stride) for side in size))
    assert promised.scales[-1].stride == 1
    assert [scale.channels for scale in promised.scales] == [64, 48, 32]


def test_all_parameters_are_in_encoder_or_decoder_and_have_gradients() -> None:
    trunk = make("conv")
    parts = [*trunk.encoder.parameters(), *trunk.decoder.parameters()]
    assert {id(p) for p in parts} == {id(p) for p in trunk.parameters()}
    trunk(torch.rand(2, 1, 40, 40)).scales[-1].square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in parts)


def weights(path: Path, prefix: str = "", without: str = "-") -> dict[str, torch.Tensor]:
    """A file of colour weights as timm names them, with the classifier of the whole network."""
    torch.manual_seed(7)
    state = {**fake_timm.Conv(3).state_dict(), "fc.weight": torch.rand(10, 16)}
    save_file({prefix + key: value for key, value in state.items() if without not in key}, path)
    return state


def test_weights_of_a_file_with_the_colours_folded(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    state = weights(file)
    colour, grey = (make("conv", init=str(file), in_channels=channels) for channels in (3, 1))
    found = colour.encoder.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in found.items())
    torch.testing.assert_close(
        grey.encoder.state_dict()["conv0.weight"], state["conv0.weight"].sum(dim=1, keepdim=True)
    )
    assert config("conv", init=str(file)).pretrained
    assert not config("conv").pretrained


@pytest.mark.parametrize("changes", [{"prefix": "backbone."}, {"without": "conv1"}])
def test_weights_that_are_not_those_of_the_encoder_are_refused(
    tmp_path: Path, changes: dict[str, str]
) -> None:
    weights(tmp_path / "w.safetensors", **changes)
    with pytest.raises(UserError, match=r"w\.safetensors.*conv"):
        make("conv", init=str(tmp_path / "w.safetensors"))


def test_weights_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.init.*none\.safetensors"):
        make("conv", init=str(tmp_path / "none.safetensors"))
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(UserError, match=r"text\.safetensors"):
        make("conv", init=str(tmp_path / "text.safetensors"))
    with pytest.raises(UserError, match=r"conv.*published"):
        make("conv", init="imagenet")
    with pytest.raises(ValueError, match="init"):
        config("conv", init="weights.pth")


def test_normalisation_is_that_of_the_weights_and_has_an_inverse() -> None:
    images = torch.rand(2, 3, 5, 6)
    colour, grey = make("conv", in_channels=3), make("conv")
    expected = (images - torch.tensor(fake_timm.MEAN).view(3, 1, 1)) / torch.tensor(fake_timm.STD).view(
        3, 1, 1
    )
    torch.testing.assert_close(colour.normalise(images), expected)
    torch.testing.assert_close(colour.denormalise(expected), images)
    mean, std = sum(fake_timm.MEAN) / 3, sum(fake_timm.STD) / 3
    torch.testing.assert_close(grey.normalise(images[:, :1]), (images[:, :1] - mean) / std)


@pytest.mark.parametrize(
    ("encoder", "changes", "named"),
    [
        ("fixed", {}, "fixed.*size"),
        ("convx", {}, "convx.*'conv'"),
        ("conv", {"decoder_widths": (64, 32)}, r"decoder_widths.*3"),
    ],
)
def test_encoders_that_do_not_fit_are_named(encoder: str, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        make(encoder, **changes)


def test_a_machine_without_timm_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_trunk(tmp_path / "trunk.safetensors", make("conv"))
    _encoder_maps.cache_clear()
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'pscl-hpc\[timm\]'"):
        load_trunk(tmp_path)


def test_a_file_restores_the_trunk_without_the_initial_weights(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    weights(file)
    trunk = make("conv", init=str(file)).eval()
    save_trunk(tmp_path / "trunk.safetensors", trunk)
    file.unlink()
    images = torch.rand(1, 1, 48, 40)
    assert torch.equal(load_trunk(tmp_path).eval()(images).scales[-1], trunk(images).scales[-1])


def test_the_short_form_names_the_encoder(tmp_path: Path) -> None:
    base = Path(__file__).resolve().parents[2] / "configs/finetune/default.yaml"
    long = load_config(base, ["model.name=timm", "model.encoder=conv", "model.init=random"])
    short = load_config(base, ["model.name=timm:conv", "model.init=random"])
    assert short == long
    assert isinstance(short, FinetuneConfig)
    assert short.model == config("conv")
    for name in ("unet:conv", "none:conv"):
        with pytest.raises(UserError, match=rf"{name}"):
            load_config(base, [f"model.name={name}"])
    with pytest.raises(UserError, match=r"model\.encoder"):
        load_config(base, ["model.name=timm"])
    with pytest.raises(UserError, match="widths"):
        load_config(base, ["model.name=timm:conv", "model.widths=[4]"])


@pytest.mark.parametrize("encoder", ["conv", "patches"])
def test_it_is_pretrained_and_fine_tuned(tmp_path: Path, encoder: str) -> None:
    archive = small_archive(tmp_path / "a.h5", size=(64, 48))
    model = {"name": "timm", "encoder": encoder, "init": "random", "decoder_widths": [16, 8, 8]}
    run = pretrain(
        small_config(archive, tmp_path / "pre", model=model, schedule={"steps": 2}, views={"size": [28, 28]})
    )
    assert load_trunk(run.path).config.name == "timm"
    tree = {
        "kind": "finetune",
        "run": str(tmp_path / "run"),
        "data": {"archive": str(archive)},
        "references": ["alloy/0"],
        "pretrained": str(run.path),
        "crop": [32, 32],
        "batch_size": 2,
        "schedule": {"steps": 2},
    }
    tuning = resolve_config(tree, source="test")
    assert isinstance(tuning, FinetuneConfig)
    evaluate(finetune(tuning).path, splits=["val"])
