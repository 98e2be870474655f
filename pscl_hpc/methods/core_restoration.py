"""CoRe (Wu et al., IEEE TIM 2023, doi 10.1109/TIM.2023.3291776): image-level contrast and image restoration.

Only the abstract is public; docs/methods.md states which parts are from it. Shape legend as in ``base``.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pscl_hpc.config import Count, Fraction, Positive
from pscl_hpc.methods.base import METHODS, Method, MethodConfig, MethodOutput, Setting, Views
from pscl_hpc.methods.common.corruption import Corrupted, CorruptionConfig, corrupt
from pscl_hpc.methods.embedding import Embedding
from pscl_hpc.models import GlobalHead, Trunk
from pscl_hpc.seeding import Draws
from pscl_hpc.training.reduce import mean_over_ranks, sum_over_ranks
from pscl_kernels import patch_nt_xent


class CoreConfig(MethodConfig):
    """CoRe: contrast of whole images and restoration of corrupted ones (Wu et al., IEEE TIM 2023).

    Only the abstract is public. It says that both losses are combined and that the corpus (``data``) should resemble
    the target; everything else is this project's choice.
    """

    name: Literal["core"] = "core"
    display_name: ClassVar[str] = "CoRe"
    corruption: CorruptionConfig = CorruptionConfig()
    """Corruption of view q."""
    restoration: Fraction = 0.5
    """Share of the restoration loss; the contrast has the rest. 0: contrast alone; 1: restoration alone."""
    balance: Literal["gradient", "loss"] = "gradient"
    """Meaning of ``restoration``. gradient: the weights are adapted so that the gradient norms of both losses at the
    bottleneck have this ratio; loss: the weights of the losses have this ratio."""
    temperature: Positive = 0.5
    """Temperature of NT-Xent."""
    projection: Count = 64
    """Width of the contrasted vectors."""
    hidden: Count = 128
    """Hidden width of the head, at most the width of the bottleneck."""


@METHODS.register(CoreConfig)
class Core(Method):
    """Contrast of the corrupted view q with view k, and restoration of view q by the decoder.

    The restoration is a 1x1 convolution of the finest decoder map.
    """

    config: CoreConfig

    def __init__(self, trunk: Trunk, config: CoreConfig, setting: Setting) -> None:
        super().__init__(trunk, config, setting)
        self.global_head = GlobalHead(
            trunk.maps.bottleneck.channels, hidden=config.hidden, projection=config.projection
        )
        self.restoration_head = nn.Conv2d(trunk.maps.scales[-1].channels, trunk.in_channels, 1)
        self.balance = GradientBalance(config.restoration, measured=config.balance == "gradient")

    def embed(self, views: Views, draws: Draws, measure: bool) -> Embedding:
        """Projections of the corrupted view q and of view k, and the restoration's error."""
        corrupted = self.corrupt(views, draws)
        maps = self.trunk.encode(corrupted.images)
        key = self.trunk.encode(views.key)[-1]
        to_contrast, to_decoder = self.balance.split(maps[-1])
        q, k = self.global_head(to_contrast), self.global_head(key)
        decoded = self.trunk.decode((*maps[:-1], to_decoder)).scales[-1]
        error, values = restoration_error(
            self.restoration_head(decoded), self.trunk.normalise(views.query), corrupted.mask
        )
        sums = {"error": error, "values": values}
        if measure:
            sums |= {"corrupted": corrupted.mask.sum(), "pixels": torch.ones_like(corrupted.mask).sum()}
        return Embedding({"q": q, "k": k}, sums)

    def loss(self, embedding: Embedding, measure: bool) -> MethodOutput:
        """Weighted sum of NT-Xent and of the mean absolute error over corrupted pixels."""
        contrast = patch_nt_xent(
            embedding.images["q"],
            embedding.images["k"],
            temperature=self.config.temperature,
            process_group=self.process_group,
            backend=self.backend,
        )
        sums = embedding.sums
        restoration = mean_over_ranks(sums["error"], sums["values"], self.process_group)
        weights = self.balance.weights()
        terms = {"image/loss": contrast.detach(), "restoration/loss": restoration.detach()}
        if measure:
            terms["restoration/weight"] = weights[1]
            terms["restoration/corrupted"] = sums["corrupted"] / sums["pixels"]
        weights = weights.to(restoration)
        return MethodOutput(weights[0] * contrast + weights[1] * restoration, terms)

    def after_step(self, progress: float) -> None:
        """Update the weights from the gradients of the step."""
        self.balance.update(self.process_group)

    def corrupt(self, views: Views, draws: Draws) -> Corrupted:
        """View q as the input of the network."""
        generators = draws.each("corruption", range(len(views.query)))
        return corrupt(views.query, self.config.corruption, generators)

    def pictures(self, views: Views, draws: Draws) -> dict[str, Tensor]:
        """View q before and after corruption, and the restored image."""
        corrupted, restored = self.restore(views, draws)
        return {"original": views.query, "corrupted": corrupted.images, "restored by the network": restored}

    @torch.no_grad()
    def restore(self, views: Views, draws: Draws) -> tuple[Corrupted, Tensor]:
        """The corrupted view q and its restoration, (B, C, h, w) in 0..1."""
        corrupted = self.corrupt(views, draws)
        restored = self.restoration_head(self.trunk(corrupted.images).scales[-1])
        return corrupted, self.trunk.denormalise(restored).clamp(0, 1)


def restoration_error(restored: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the absolute errors over the corrupted pixels, and the number of values in it.

    Args:
        restored: (B, C, h, w), in the units of the target.
        target: (B, C, h, w).
        mask: Corrupted pixels, bool (B, 1, h, w).
    """
    return torch.where(mask, restored - target, 0.0).abs().sum(), mask.sum() * restored.shape[1]


class GradientBalance(nn.Module):
    """Weights of two losses such that the norms of their gradients at a shared map have a given ratio.

    The norms are measured in the regular backward pass, so the weights of a step depend on earlier steps only. With g1
    and g2 the moving root mean squares of the gradient norms of the *unweighted* losses, the weights have the ratio
    ``(1 - share) / g1 : share / g2`` and add up to 1. The moving averages are a buffer and part of a checkpoint.

    Args:
        share: Share of the second loss; the first has the rest.
        measured: Whether to adapt the weights; if not, they are ``1 - share`` and ``share``.
    """

    norms: Tensor
    """Moving averages of the squared norms, (2,); 0 before the first measurement."""
    _MEMORY = 0.95
    """Share of the old value in the moving averages. The first measurement is used as it is."""

    def __init__(self, share: float, *, measured: bool) -> None:
        super().__init__()
        self.share = share
        self.measured = measured and 0 < share < 1
        self.register_buffer("norms", torch.zeros(2, dtype=torch.float64))
        self._seen: list[Tensor] = []

    def weights(self) -> Tensor:
        """Weights of the two losses, float64 (2,)."""
        wanted = torch.tensor((1 - self.share, self.share), dtype=torch.float64, device=self.norms.device)
        if self.measured:
            wanted = torch.where((self.norms > 0).all(), wanted / self.norms.sqrt(), wanted)
        return wanted / wanted.sum()

    def split(self, shared: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of the map for the first and the second loss, with hooks that measure their gradients."""
        branches = shared.clone(), shared.clone()
        if self.training and self.measured and shared.requires_grad:
            for place, branch in enumerate(branches):
                branch.register_hook(partial(self._see, place))  # type: ignore[no-untyped-call]
        return branches

    @torch.no_grad()
    def update(self, process_group: dist.ProcessGroup | None = None) -> None:
        """Update from all gradients since the last call, of all accumulated passes and ranks."""
        if not self._seen:
            return
        squares = sum_over_ranks(torch.stack(self._seen).sum(dim=0), process_group)
        self._seen.clear()
        new = squares / self.weights().square()
        # A loss without gradient (a batch without corrupted pixels) gives no ratio.
        usable = (new > 0).all() & new.isfinite().all()
        mixed = torch.where((self.norms > 0).all(), self._MEMORY * self.norms + (1 - self._MEMORY) * new, new)
        self.norms.copy_(torch.where(usable, mixed, self.norms))

    def _see(self, place: int, gradient: Tensor) -> None:
        square = torch.zeros(2, dtype=torch.float64, device=gradient.device)
        square[place] = gradient.detach().double().square().sum()
        self._seen.append(square)
