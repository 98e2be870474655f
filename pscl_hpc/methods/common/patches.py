"""The patches that a method contrasts: templates in annotated images, the most similar patches in all others.

Shape legend: R references, B images, C channels or classes, h w pixels, H W patches of a map, T templates, k templates
per class, D width of a projection.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pscl_hpc.methods.base import PatchSample, Views
from pscl_hpc.methods.common.sampling import choose_templates, match_templates
from pscl_hpc.methods.common.settings import AnnotatedPatchConfig
from pscl_hpc.methods.common.texture import PATCH_WINDOWS, texture, texture_patches
from pscl_hpc.models import Features
from pscl_hpc.seeding import Draws
from pscl_hpc.views import class_shares, paired_patches, view_to_source, warp

_PATCHES_AT_ONCE = {"cpu": 1 << 16, "cuda": 1 << 22}
"""Patches projected and matched at a time: on a CPU what stays in its cache, elsewhere what bounds memory. It changes no
number."""


class PatchSampler:
    """Supervised-assisted patch sampling (docs/methods.md, PSCL) at every scale of a trunk.

    Args:
        config: Number and choice of templates, and how patches are matched to them.
        classes: Number of classes of the references' collection.
        ignored: Classes whose annotation is not to be trusted; they give no templates.
    """

    def __init__(self, config: AnnotatedPatchConfig, *, classes: int, ignored: tuple[int, ...] = ()) -> None:
        self.config = config
        self.classes = classes
        self.ignored = ignored

    @torch.no_grad()
    def __call__(
        self, views: Views, key: Features, heads: nn.ModuleList, draws: Draws
    ) -> tuple[PatchSample, ...]:
        """Patches per scale, coarse to fine: those of the references by class, those of the others by similarity.

        Reference ``r`` gives the templates of every R-th other image, starting with the r-th.

        Args:
            views: The batch.
            key: Maps of view k.
            heads: The projection of each scale in which patches are compared.
            draws: Where templates are drawn from.
        """
        labels = self._one_hot(views)
        described = texture(views.key, PATCH_WINDOWS) if self.config.texture else None
        generators = draws.each("templates", range(views.references))
        return tuple(
            self._at_scale(scale, patch_map, head, views, labels, described, generators)
            for scale, (patch_map, head) in enumerate(zip(key.scales, heads, strict=True))
        )

    def _at_scale(
        self,
        scale: int,
        patch_map: Tensor,
        head: nn.Module,
        views: Views,
        labels: Tensor,
        described: Tensor | None,
        generators: list[torch.Generator],
    ) -> PatchSample:
        references = views.references
        height, width = patch_map.shape[2:]
        count = self.config.templates_per_class * self.config.template_growth**scale
        paired = paired_patches(views.geometry, height, width)
        compare = _Comparison(head, described, (height, width), self.config.texture)
        own = views.geometry[:references]
        shares = class_shares(labels, own, height, width, antialias=self.config.antialias).flatten(2)
        chosen = choose_templates(shares, paired[:references], count, self.config, generators)
        chosen = torch.where(self._taught(labels, chosen.shape[1]), chosen, -1)
        classes = torch.arange(self.classes, device=chosen.device).repeat_interleave(
            chosen.shape[1] // self.classes
        )
        purity = _of_class(shares, chosen)
        templates = compare.at(patch_map[:references], chosen.clamp_min(0))
        others = len(paired) - references
        if not others:
            return PatchSample(chosen, classes, purity)
        giver = torch.arange(others, device=chosen.device) % references
        found = []
        # Images are matched independently, so that the projections of all patches never exist at once.
        at_once = max(1, _PATCHES_AT_ONCE.get(chosen.device.type, 1 << 22) // paired.shape[1])
        for part in torch.split(torch.arange(others, device=chosen.device), at_once):
            patches = compare(patch_map, references + part)
            found.append(
                match_templates(
                    templates[giver[part]].to(patches),
                    (chosen >= 0)[giver[part]],
                    patches,
                    paired[references + part],
                    self.config,
                )
            )
        return PatchSample(torch.cat((chosen, *found)), classes, torch.cat((purity, purity[giver])))

    def _taught(self, labels: Tensor, templates: int) -> Tensor:
        """Whether a template can exist, bool (R, templates): its class counts, and the reference is annotated."""
        counts = torch.ones(self.classes, dtype=torch.bool, device=labels.device)
        counts[list(self.ignored)] = False
        shown = labels.flatten(1).any(dim=1, keepdim=True)
        return shown & counts.repeat_interleave(templates // self.classes)

    def _one_hot(self, views: Views) -> Tensor:
        """Labels of the references in view k, (R, C, h, w) in 0..1; unknown and ignored pixels belong to no class."""
        labels = views.labels[: views.references].long()
        shares = F.one_hot(torch.where(labels < self.classes, labels, self.classes), self.classes + 1)
        shares = shares[..., : self.classes].permute(0, 3, 1, 2).to(views.query.dtype)
        if self.ignored:
            shares[:, list(self.ignored)] = 0
        return warp(shares, views.geometry[: views.references])


class _Comparison:
    """What patches of one scale are compared by: projections, and descriptors of texture where they have a share.

    Args:
        head: The projection.
        described: Descriptors of the pixels of view k, (B, D, h, w); None: projections alone.
        grid: Height and width of the scale.
        share: Part that texture has in the cosine of two patches' vectors, 0 to 1.
    """

    def __init__(
        self, head: nn.Module, described: Tensor | None, grid: tuple[int, int], share: float
    ) -> None:
        self.head = head
        self.share = share
        self.texture = None if described is None else texture_patches(described, *grid)

    def __call__(self, patch_map: Tensor, images: Tensor) -> Tensor:
        """Vectors of all patches of some images, given by their numbers: (len(images), P, D)."""
        projected: Tensor = self.head(patches_of(patch_map[images]))
        return projected if self.texture is None else self._join(projected, self.texture[images])

    def at(self, patch_map: Tensor, patches: Tensor) -> Tensor:
        """Vectors (R, T, D) of the patches (R, T) of the first R images, whose maps are given."""
        projected: Tensor = self.head(gather_patches(patch_map, patches))
        if self.texture is None:
            return projected
        own = self.texture[: len(patches)]
        return self._join(projected, own.gather(1, patches.unsqueeze(-1).expand(-1, -1, own.shape[2])))

    def _join(self, projected: Tensor, described: Tensor) -> Tensor:
        direction = F.normalize(projected.float(), dim=-1)
        joined = torch.cat(((1 - self.share) ** 0.5 * direction, self.share**0.5 * described), dim=-1)
        return joined.to(projected.dtype)


@torch.no_grad()
def patch_purity(views: Views, sample: PatchSample, height: int, width: int) -> Tensor:
    """Share of each image's sampled patches whose centre has the template's class, (B,); NaN where masks are unknown."""
    found = patch_labels(views, sample.key_patches.clamp_min(0), height, width)
    known = sample.valid & (found != 255) & views.comparable[:, None]
    hits = (known & (found == sample.classes)).sum(dim=1)
    return hits / torch.where(known.any(dim=1), known.sum(dim=1).float(), torch.nan)


def patch_labels(views: Views, patches: Tensor, height: int, width: int) -> Tensor:
    """Mask at the centres of patches (B, T) of view k, int64 (B, T); 255 where unknown."""
    rows, cols = views.labels.shape[1:]
    y = (torch.div(patches, width, rounding_mode="floor") + 0.5) * rows / height - 0.5
    x = (patches % width + 0.5) * cols / width - 0.5
    source_y, source_x = view_to_source(views.geometry, y, x, rows, cols)
    index = source_y.round().long().clamp(0, rows - 1) * cols + source_x.round().long().clamp(0, cols - 1)
    return views.labels.flatten(1).gather(1, index).long()


def patches_of(patch_map: Tensor) -> Tensor:
    """Map (B, C, H, W) as patch vectors (B, H * W, C); no copy in channels-last memory."""
    return patch_map.permute(0, 2, 3, 1).flatten(1, 2)


def gather_patches(patch_map: Tensor, patches: Tensor) -> Tensor:
    """Vectors (B, T, C) of the patches (B, T) of a map (B, C, H, W)."""
    flat = patches_of(patch_map)
    return flat.gather(1, patches.unsqueeze(-1).expand(-1, -1, flat.shape[2]))


def _of_class(shares: Tensor, chosen: Tensor) -> Tensor:
    """Share (R, C, P) of each template's own class in its patch, (R, C * k); 0 where there is no template."""
    patches = chosen.view(*shares.shape[:2], -1)
    return torch.where(patches >= 0, shares.gather(2, patches.clamp_min(0)), 0.0).flatten(1)
