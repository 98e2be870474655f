"""A new trunk is one module with a class and its settings. This one is defined here, without a change in pscl_hpc."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pscl_hpc.cli.main import main
from pscl_hpc.config import Count, resolve_config
from pscl_hpc.methods import METHODS
from pscl_hpc.models import (
    TRUNKS,
    Features,
    MapShape,
    Trunk,
    TrunkConfig,
    TrunkMaps,
    load_segmentation,
    load_trunk,
)
from pscl_hpc.pretraining import pretrain
from pscl_hpc.segmentation import evaluate, finetune
from pscl_hpc.segmentation.config import FinetuneConfig
from tests.helpers import small_archive, small_config


class PyramidConfig(TrunkConfig):
    """A trunk with strides 1, 4 and 8: the levels do not all halve the resolution."""

    name: Literal["pyramid"] = "pyramid"
    display_name: ClassVar[str] = "Pyramid"
    width: Count = 4

    @property
    def maps(self) -> TrunkMaps:
        shapes = tuple(MapShape(self.width, stride) for stride in (1, 4, 8))
        return TrunkMaps(shapes, (shapes[1], shapes[0]))


class Pyramid(Trunk):
    """Strided convolutions up and down."""

    def __init__(self, config: PyramidConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.encoder = nn.ModuleList(
            [
                nn.Conv2d(config.in_channels, width, 3, padding=1),
                nn.Conv2d(width, width, 4, stride=4),
                nn.Sequential(nn.Conv2d(width, width, 2, stride=2), nn.BatchNorm2d(width)),
            ]
        )
        self.decoder = nn.ModuleList(nn.Conv2d(2 * width, width, 3, padding=1) for _ in range(2))

    def normalise(self, images: Tensor) -> Tensor:
        return 2 * images - 1

    def denormalise(self, values: Tensor) -> Tensor:
        return (values + 1) / 2

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = [self.normalise(images)]
        for layer in self.encoder:  # type: ignore[attr-defined]
            maps.append(F.relu(layer(maps[-1])))
        return tuple(maps[1:])

    def decode(self, maps: Sequence[Tensor]) -> Features:
        x, scales = maps[-1], []
        for layer, skip in zip(self.decoder, maps[-2::-1], strict=True):  # type: ignore[call-overload]
            x = F.relu(layer(torch.cat((F.interpolate(x, size=skip.shape[2:]), skip), dim=1)))
            scales.append(x)
        return Features(maps[-1], tuple(scales))


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    TRUNKS.register(PyramidConfig)(Pyramid)
    yield
    TRUNKS.unregister("pyramid")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_archive(tmp_path_factory.mktemp("a") / "a.h5", size=(64, 48))


@pytest.mark.parametrize("method", METHODS.names)
def test_every_method_pretrains_it(archive: Path, tmp_path: Path, method: str) -> None:
    values = {"name": method}
    if "reference" in METHODS.config(method).model_fields:
        values |= {"reference": {"ids": ["alloy/0"]}}
    config = small_config(
        archive,
        tmp_path / "run",
        model={"name": "pyramid"},
        method=values,
        schedule={"steps": 2},
        batch_size=4,
        optimiser={"lr": 1e-3},
    )
    run = pretrain(config)
    assert load_trunk(run.path).config == PyramidConfig()
    assert all(line["loss"] == line["loss"] for line in run.metrics())


@pytest.mark.parametrize("semi_supervised", [None, {"name": "ideal", "batch_size": 2}])
def test_fine_tuning_and_evaluation_accept_it(
    archive: Path, tmp_path: Path, semi_supervised: dict[str, object] | None
) -> None:
    tree = {
        "kind": "finetune",
        "run": str(tmp_path / "run"),
        "data": {"archive": str(archive)},
        "references": ["alloy/0"],
        "model": {"name": "pyramid", "width": 6},
        "crop": [32, 32],
        "batch_size": 2,
        "schedule": {"steps": 2},
        "semi_supervised": semi_supervised,
    }
    config = resolve_config(tree, source="test")
    assert isinstance(config, FinetuneConfig)
    run = finetune(config)
    assert load_segmentation(run.path)[0].trunk.config == PyramidConfig(width=6)
    evaluate(run.path, splits=["val"])


def test_the_command_line_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "finetune", "--model", "pyramid"]) == 0
    assert "width: 4" in capsys.readouterr().out
