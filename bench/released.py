# mypy: disable-error-code="import-not-found, union-attr, arg-type, operator, unused-ignore"
"""The released PSCL-SimCLR code and ours with the same weights, images, geometry and tie-breaks, on any device.

The released code is a checkout of github.com/neulmc/PSCL at commit 9b012a9. It needs CUDA and torchvision: on a CPU
`.cuda()` is replaced by a no-op, and the only torchvision transform that it uses is implemented here.
"""

from __future__ import annotations

import ast
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pscl_hpc.archive import Collection
from pscl_hpc.archive.synthesis import synthesise
from pscl_hpc.config import ViewConfig, resolve_config
from pscl_hpc.methods import Setting, Views, build_method
from pscl_hpc.methods.pscl_simclr import PsclSimclr
from pscl_hpc.models import build_trunk
from pscl_hpc.models.unet import UNet
from pscl_hpc.pretraining.config import PretrainConfig
from pscl_hpc.seeding import Draws
from pscl_hpc.views import ViewGeometry, draw_geometry, warp
from pscl_hpc.views.geometry import crop_on_grid

CLASSES = 4

PICTURES = 16
"""Different synthetic micrographs in a batch."""

MEAN, STD = (0.49139968, 0.48215841, 0.44653091), (0.24703223, 0.24348513, 0.26158784)
MODEL = {"in_channels": 3, "mean": list(MEAN), "std": list(STD)}
RELEASED = {"template_rule": "released", "matching": "dot", "exclusion": "released", "antialias": False}
OURS = {"template_rule": "pure", "matching": "cosine", "exclusion": "strict", "antialias": True}


def make_batch(size: int, batch: int, device: torch.device | str = "cpu") -> Views:
    """`batch` + 1 synthetic micrographs, the first one annotated; they repeat after `PICTURES`."""
    count = min(batch + 1, PICTURES)
    made = [synthesise("precipitates", seed=1, index=i, size=(size, size)) for i in range(count)]
    pictures = [made[i % count] for i in range(batch + 1)]
    images = torch.stack([torch.from_numpy(p.image).float() / 255 for p in pictures])[:, None].repeat(
        1, 3, 1, 1
    )
    geometry = draw_geometry(batch + 1, ViewConfig(size=(size, size)), torch.Generator().manual_seed(0))
    labels = torch.stack([torch.from_numpy(p.mask) for p in pictures])
    images, labels, geometry = images.to(device), labels.to(device), geometry.to(device)
    return Views(
        images,
        warp(images, geometry),
        geometry,
        1,
        labels,
        torch.ones(batch + 1, dtype=torch.bool, device=device),
        torch.full((batch + 1,), -1, device=device),
    )


def draws(views: Views) -> Draws:
    """The random numbers of the measured step."""
    return Draws(5, 0, tuple(range(len(views.query))), views.query.device)


def build_ours(options: dict[str, Any], device: torch.device | str = "cpu") -> PsclSimclr:
    """PSCL-SimCLR with the released network and these settings of the method."""
    method = {"name": "pscl-simclr", "reference": {"ids": ["alloy/0"]}, **options}
    tree = {"kind": "pretrain", "run": "-", "data": {"archive": "-"}, "model": MODEL, "method": method}
    config = resolve_config(tree, source="bench/released.py")
    assert isinstance(config, PretrainConfig)
    torch.manual_seed(0)
    collection = Collection("alloy", tuple("abcd"[:CLASSES]), 0, (), ("alloy/0",))
    built = build_method(config.method, build_trunk(config.model), Setting(collection))
    assert isinstance(built, PsclSimclr)
    return built.to(device).train()


def ours_step(
    method: PsclSimclr, views: Views, *, bfloat16: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.autocast(views.query.device.type, torch.bfloat16, enabled=bfloat16):
        output = method(views, draws(views))
    output.loss.backward()
    return output.loss.detach(), output.terms


def load_released(
    checkout: Path, device: torch.device | str = "cpu"
) -> tuple[Any, dict[str, Callable[..., Tensor]]]:
    """The released model module, and the two loss functions that are defined inside its training function."""
    sys.modules["torchvision"] = vision = types.ModuleType("torchvision")
    vision.transforms = types.SimpleNamespace(  # type: ignore[attr-defined]
        Resize=Resize, InterpolationMode=types.SimpleNamespace(NEAREST="nearest", BILINEAR="bilinear")
    )
    if torch.device(device).type == "cpu":
        torch.Tensor.cuda = lambda self, *a, **k: self  # type: ignore[method-assign,assignment,misc]
        nn.Module.cuda = lambda self, *a, **k: self  # type: ignore[method-assign,assignment,misc]
    sys.path.insert(0, str(checkout))
    import model as released

    settings = types.SimpleNamespace(top_k=4, sample_ratio=2, simclrinner=True)
    scope: dict[str, Any] = {"np": np, "torch": torch, "F": F, "config_lmc": settings}
    for node in ast.walk(ast.parse((checkout / "config_run.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name in ("nt_xent_loss_d", "nt_xent_loss"):
            exec(compile(ast.Module([node], []), "config_run.py", "exec"), scope)
    return released, scope


class Resize:
    """torchvision 0.13's Resize of tensors: no antialiasing.

    ``exact`` replaces its nearest neighbour, which rounds in float32, by ``i * H // rows`` in whole numbers.
    """

    exact = False

    def __init__(self, size: list[int], interpolation: str = "bilinear") -> None:
        self.size, self.mode = size, interpolation

    def __call__(self, image: Tensor) -> Tensor:
        if self.mode == "nearest" and self.exact:
            i, j = (torch.arange(n) * old // n for n, old in zip(self.size, image.shape[-2:], strict=True))
            return image[..., i, :][..., j]
        flat = image.float().reshape(1, -1, *image.shape[-2:])
        if self.mode == "nearest":
            found = F.interpolate(flat, size=self.size, mode="nearest").round().to(image.dtype)
        else:
            found = F.interpolate(flat, size=self.size, mode="bilinear", align_corners=False)
        return found.view(*image.shape[:-2], *self.size)


def build_released(released: Any, ours: PsclSimclr) -> Any:
    """The released model with our weights."""
    model = released.MoCo_DenseModel(
        released.UNet, queue_size=504, top_k=4, sample_ratio=2, channel=[32, 64, 128, 256], selfmode="simclr",
        IncNorm=["BN", "BN"], DownNorm=["BN", "BN"], UpNorm=["BN", "LN"], HeadNrom=["LN", ""], multihead=4,
    )  # fmt: skip
    encoder, head, trunk = model.encoder_q.encode, model.encoder_q.decode, ours.trunk
    assert isinstance(trunk, UNet)
    blocks = [encoder.inc, encoder.down1.conv, encoder.down2.conv, encoder.down3.conv]
    for theirs, own in zip(blocks, trunk.encoder, strict=True):
        _copy_block(theirs, own)
    for theirs, own in zip((encoder.up1, encoder.up2, encoder.up3), trunk.decoder, strict=True):
        theirs.up.load_state_dict(own.up.state_dict())
        _copy_block(theirs.conv, own.block)
    for index, layer in ((0, 0), (2, 2)):
        head.mlp[index].load_state_dict(ours.global_head.layers[layer].state_dict())
    for scale, own in enumerate(ours.patch_heads, start=1):
        for name, part in (("conv1", own.expand), ("conv2", own.project)):
            conv = getattr(head, f"conv_x4up{scale}_{name}")
            conv.weight.data.copy_(part.weight.data.view_as(conv.weight))
            conv.bias.data.copy_(part.bias.data)
        getattr(head, f"conv_x4up{scale}_norm1").load_state_dict(own.norm.state_dict())
    return model.to(next(ours.parameters()).device).train()


def _copy_block(theirs: Any, own: nn.Sequential) -> None:
    for name, index in (("con1", 0), ("norm1", 1), ("con2", 3), ("norm2", 4)):
        getattr(theirs, name).load_state_dict(own[index].state_dict())


class ReleasedInputs(NamedTuple):
    """Inputs of the released step: images and labels on the device, numbers on the host."""

    query: Tensor
    key: Tensor
    labels: Tensor
    geometry: ViewGeometry


def released_inputs(views: Views) -> ReleasedInputs:
    mean, std = (torch.tensor(v, device=views.query.device).view(1, 3, 1, 1) for v in (MEAN, STD))
    labels = F.one_hot(views.labels[:1].long(), CLASSES).permute(0, 3, 1, 2).float()
    labels = 255 * warp(labels, views.geometry[:1])
    return ReleasedInputs(
        (views.query - mean) / std, (views.key - mean) / std, labels, views.geometry.to(torch.device("cpu"))
    )


def released_step(
    model: Any, losses: dict[str, Any], inputs: ReleasedInputs
) -> tuple[Tensor, dict[str, Tensor]]:
    """Forward, loss and backward as the released training loop computes them."""
    g = inputs.geometry
    filp = torch.where(g.flip, 1, 2)
    q, k, *patches = model(
        inputs.query, inputs.key, inputs.labels, ["0_0"] * len(g), g.turns, filp, g.height, g.width, g.top,
        g.left,
    )  # fmt: skip
    batch = len(g)
    dense = [
        losses["nt_xent_loss_d"](patches[2 * s], patches[2 * s + 1], 0.5, deep=s, bat=batch) for s in range(3)
    ]
    image = losses["nt_xent_loss"](q, k, 0.5)
    loss = 0.3 * image + 0.7 * (dense[0] + dense[1] + dense[2]) / 3
    loss.backward()
    terms = {f"scale{s}/loss": value.detach() for s, value in enumerate(dense)}
    return loss.detach(), {"image/loss": image.detach(), **terms}


@contextmanager
def tie_breaks(views: Views) -> Iterator[None]:
    """Context in which the released code gets the random numbers that ours draws for the same patches and scale."""
    (generator,), size = draws(views).each("templates", range(1)), views.query.shape[-1]
    noises = []
    for patches in (size // 4, size // 2, size):
        noise = torch.rand((1, CLASSES, patches * patches), generator=generator, device=generator.device)
        noise = noise.view(CLASSES, patches, patches)
        crop = crop_on_grid(views.geometry[:1], patches, patches)
        rows, cols = int(crop.rows[0]), int(crop.cols[0])
        i, j = torch.arange(rows) * patches // rows, torch.arange(cols) * patches // cols
        noises.append(noise[:, i][:, :, j].reshape(CLASSES, -1))
    rand, torch.rand = torch.rand, lambda *a, **k: noises.pop(0)  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.rand = rand
