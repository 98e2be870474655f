"""Supervised-assisted patch sampling: templates in annotated images, the most similar patches in all others.

Sci. Rep. 2025, doi 10.1038/s41598-025-32855-5; steps 2 and 3 of PSCL-SimCLR in docs/methods.md.

Shape legend: R references, B images, C channels or classes, h w pixels, H W patches of a map, P = H * W, T templates, k
templates per class, D width of a vector.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pscl_hpc.methods.base import PatchSample, Views
from pscl_hpc.methods.common.patches import (
    PATCH_WINDOWS,
    gather_patches,
    patches_of,
    texture,
    texture_patches,
)
from pscl_hpc.methods.common.pscl_config import AnnotatedPatchConfig
from pscl_hpc.models import Features
from pscl_hpc.seeding import Draws
from pscl_hpc.views import class_shares, paired_patches, warp
from pscl_kernels import sample_similar

_PATCHES_AT_ONCE = {"cpu": 1 << 16, "cuda": 1 << 22}
"""Patches projected and matched at a time: limited by the cache of a CPU, and by memory elsewhere. It does not change
results."""
_WHOLE = 1 - 1e-5
"""Minimum share of the class in a patch of one class alone. Rounding to float32 makes it slightly smaller than 1."""


class PatchSampler:
    """Supervised-assisted patch sampling at every scale of a trunk.

    Args:
        config: Number and choice of templates, and the rules of matching.
        classes: Number of classes of the references' collection.
        ignored: Classes with unreliable annotation. They give no templates.
    """

    def __init__(self, config: AnnotatedPatchConfig, *, classes: int, ignored: tuple[int, ...] = ()) -> None:
        self.config = config
        self.classes = classes
        self.ignored = ignored

    @torch.no_grad()
    def __call__(
        self, views: Views, key: Features, heads: nn.ModuleList, draws: Draws
    ) -> tuple[PatchSample, ...]:
        """Patches of each scale, coarse to fine: of the references by class, of the other images by similarity.

        Image ``i`` of the others uses the templates of reference ``i`` mod R.

        Args:
            views: The batch.
            key: Maps of view k.
            heads: Projection head of each scale. Patches are compared by their projections.
            draws: Source of random numbers.
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
        # Images are matched independently, a few at a time, to bound the memory for projections.
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
        """Whether a template can exist, bool (R, templates): its class is not ignored and the reference is
        annotated."""
        counts = torch.ones(self.classes, dtype=torch.bool, device=labels.device)
        counts[list(self.ignored)] = False
        shown = labels.flatten(1).any(dim=1, keepdim=True)
        return shown & counts.repeat_interleave(templates // self.classes)

    def _one_hot(self, views: Views) -> Tensor:
        """Labels of the references in view k, (R, C, h, w) in 0..1; 0 for unknown pixels and ignored classes."""
        labels = views.labels[: views.references].long()
        shares = F.one_hot(torch.where(labels < self.classes, labels, self.classes), self.classes + 1)
        shares = shares[..., : self.classes].permute(0, 3, 1, 2).to(views.query.dtype)
        if self.ignored:
            shares[:, list(self.ignored)] = 0
        return warp(shares, views.geometry[: views.references])


class _Comparison:
    """Vectors for comparing the patches of one scale: projections, optionally joined with texture descriptors.

    Args:
        head: Projection head.
        described: Texture descriptors of view k, (B, D, h, w); None: projections alone.
        grid: Height and width of the scale.
        share: Share of texture in the cosine of two vectors, 0 to 1.
    """

    def __init__(
        self, head: nn.Module, described: Tensor | None, grid: tuple[int, int], share: float
    ) -> None:
        self.head = head
        self.share = share
        self.texture = None if described is None else texture_patches(described, *grid)

    def __call__(self, patch_map: Tensor, images: Tensor) -> Tensor:
        """Vectors of all patches of the images with these indices: (len(images), P, D)."""
        projected: Tensor = self.head(patches_of(patch_map[images]))
        return projected if self.texture is None else self._join(projected, self.texture[images])

    def at(self, patch_map: Tensor, patches: Tensor) -> Tensor:
        """Vectors (R, T, D) of the patches (R, T) of the first R images, given their maps."""
        projected: Tensor = self.head(gather_patches(patch_map, patches))
        if self.texture is None:
            return projected
        own = self.texture[: len(patches)]
        return self._join(projected, own.gather(1, patches.unsqueeze(-1).expand(-1, -1, own.shape[2])))

    def _join(self, projected: Tensor, described: Tensor) -> Tensor:
        direction = F.normalize(projected.float(), dim=-1)
        joined = torch.cat(((1 - self.share) ** 0.5 * direction, self.share**0.5 * described), dim=-1)
        return joined.to(projected.dtype)


def choose_templates(
    shares: Tensor,
    paired: Tensor,
    count: int,
    config: AnnotatedPatchConfig,
    generators: list[torch.Generator],
) -> Tensor:
    """Template patches of each reference, sorted by class.

    Args:
        shares: Share of each class in each patch, (R, C, P).
        paired: Patches with a partner in view q, bool (R, P).
        count: Templates per class, k.
        config: ``template_rule`` and ``purity``.
        generators: One per reference, on the device of ``shares``.

    Returns:
        int64 (R, C * k); -1 where a class has fewer sufficiently pure patches than templates.
    """
    if config.template_rule == "released":
        count = min(count, shares.shape[-1])
        return _released_templates(shares, paired, count, _noise(shares, generators))
    return choose_pure(shares, paired, count, config.purity, generators)


def choose_pure(
    shares: Tensor, paired: Tensor, count: int, purity: float, generators: list[torch.Generator]
) -> Tensor:
    """Random patches of each class with a share of at least ``purity``. Arguments as in :func:`choose_templates`.

    ``purity`` is above 0.5, so that no patch qualifies for two classes and all classes can choose at once.
    """
    count = min(count, shares.shape[-1])
    eligible = (shares >= min(purity, _WHOLE)) & paired.unsqueeze(1)
    score, patches = torch.where(eligible, _noise(shares, generators), -1.0).topk(count, dim=-1)
    return torch.where(score >= 0, patches, -1).flatten(1)


def _noise(shares: Tensor, generators: list[torch.Generator]) -> Tensor:
    # 16-bit noise has many equal values, and topk would prefer the first of them: the top of the image.
    dtype = torch.promote_types(shares.dtype, torch.float32)
    return torch.stack(
        [
            torch.rand(shares.shape[1:], generator=generator, device=shares.device, dtype=dtype)
            for generator in generators
        ]
    )


def match_templates(
    templates: Tensor, chosen: Tensor, patches: Tensor, paired: Tensor, config: AnnotatedPatchConfig
) -> Tensor:
    """For each image and template the most similar patch that is not yet taken.

    Args:
        templates: Vectors of the template patches, (B, T, D).
        chosen: Whether a template exists, bool (B, T).
        patches: Vectors of all patches of view k, (B, P, D).
        paired: Patches that may be taken, bool (B, P).
        config: ``matching`` and ``exclusion``.

    Returns:
        int64 (B, T); -1 where there is no template or no patch is left.
    """
    if config.matching == "dot":
        templates, patches = _cosine_of_dot(templates, patches)
    elif config.exclusion == "released":
        templates, patches = F.normalize(templates.float(), dim=-1), F.normalize(patches.float(), dim=-1)
    # Missing templates go last, so that they take no patch from existing ones.
    order = chosen.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
    queue = templates.gather(1, order.unsqueeze(-1).expand_as(templates))
    if config.exclusion == "released":
        found = _released_greedy(queue, patches, paired)
    else:
        found = sample_similar(queue, patches, paired)
    back = torch.empty_like(found).scatter_(1, order, found)
    return torch.where(chosen, back, -1)


def _cosine_of_dot(templates: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors whose cosine orders patches as the dot product does: patches get one more component and equal length."""
    templates, patches = templates.float(), patches.float()
    square = patches.square().sum(dim=-1, keepdim=True)
    lift = (square.amax(dim=1, keepdim=True) - square).clamp_min(0).sqrt()
    return torch.cat((templates, torch.zeros_like(templates[..., :1])), -1), torch.cat((patches, lift), -1)


def _released_templates(shares: Tensor, paired: Tensor, count: int, noise: Tensor) -> Tensor:
    """As released: labels of 0..255, noise U(0, 0.1), exclusion by subtracting the largest value."""
    values = torch.where(paired.unsqueeze(1), 255 * shares, -torch.inf)
    largest = values.amax(dim=(1, 2)).unsqueeze(-1)
    history = torch.zeros_like(values[:, 0])
    picked = []
    for of_class, of_noise in zip(values.unbind(1), noise.unbind(1), strict=True):
        patches = (of_class + 0.1 * of_noise + history).topk(count, dim=-1).indices
        history = history.scatter_add(1, patches, -largest.expand(-1, count))
        picked.append(patches)
    chosen = torch.cat(picked, dim=1)
    return torch.where(paired.gather(1, chosen), chosen, -1)


def _released_greedy(templates: Tensor, patches: Tensor, paired: Tensor) -> Tensor:
    """As released, one template after another: the largest similarity is subtracted from a taken patch."""
    with torch.autocast(patches.device.type, enabled=False):
        similarity = torch.einsum("btd,bpd->btp", templates.float(), patches.float())
    similarity.masked_fill_(~paired.unsqueeze(1), -torch.inf)
    largest = similarity.amax(dim=(1, 2)).view(-1, 1, 1)
    found = []
    for template in range(templates.shape[1]):
        best = similarity[:, template].argmax(dim=-1)
        column = best.view(-1, 1, 1).expand(-1, templates.shape[1], 1)
        similarity.scatter_add_(2, column, -largest.expand_as(column))
        found.append(best)
    return torch.stack(found, dim=1)


def _of_class(shares: Tensor, chosen: Tensor) -> Tensor:
    """Share of each template's class in its patch from ``shares`` (R, C, P): (R, C * k); 0 where there is no
    template."""
    patches = chosen.view(*shares.shape[:2], -1)
    return torch.where(patches >= 0, shares.gather(2, patches.clamp_min(0)), 0.0).flatten(1)
