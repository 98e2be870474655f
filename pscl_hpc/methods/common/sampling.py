"""Supervised-assisted patch sampling: templates from annotated patches, matches in other images.

Described in docs/methods.md, PSCL, steps 2 and 3; of the paper Sci. Rep. 2025, doi 10.1038/s41598-025-32855-5.

Shape legend: R references, B images, C classes, H W patches of a map, P = H * W, T templates, k templates per class.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pscl_hpc.methods.common.precision import without_autocast
from pscl_hpc.methods.common.settings import AnnotatedPatchConfig
from pscl_kernels import sample_similar

_WHOLE = 1 - 1e-5
"""A patch of one class alone has at least this share of it: weights that are rounded to float32 add up to a little less
than 1."""


def choose_templates(
    shares: Tensor,
    paired: Tensor,
    count: int,
    config: AnnotatedPatchConfig,
    generators: list[torch.Generator],
) -> Tensor:
    """Template patches of each reference, class after class.

    Args:
        shares: Share of each class in each patch, (R, C, P).
        paired: Patches that have a partner in view q, bool (R, P).
        count: Templates per class, k.
        config: ``template_rule`` and ``purity``.
        generators: One for each reference, on the device of ``shares``.

    Returns:
        int64 (R, C * k); -1 where a class has fewer patches of sufficient purity than templates.
    """
    if config.template_rule == "released":
        count = min(count, shares.shape[-1])
        return _released_templates(shares, paired, count, _noise(shares, generators))
    return choose_pure(shares, paired, count, config.purity, generators)


def choose_pure(
    shares: Tensor, paired: Tensor, count: int, purity: float, generators: list[torch.Generator]
) -> Tensor:
    """Random patches of each class among those of which at least ``purity`` has it; otherwise :func:`choose_templates`.

    ``purity`` is above one half, so that no patch is one of two classes and all classes can choose at once.
    """
    count = min(count, shares.shape[-1])
    eligible = (shares >= min(purity, _WHOLE)) & paired.unsqueeze(1)
    score, patches = torch.where(eligible, _noise(shares, generators), -1.0).topk(count, dim=-1)
    return torch.where(score >= 0, patches, -1).flatten(1)


def _noise(shares: Tensor, generators: list[torch.Generator]) -> Tensor:
    # Equal noise would be won by the patch of the lowest number, that is by the top of the image.
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
    """For each image and template the most similar patch that is still free.

    Args:
        templates: Vectors of the template patches, (B, T, D).
        chosen: Whether a template exists, bool (B, T).
        patches: Vectors of all patches of view k, (B, P, D).
        paired: Patches that may be taken, bool (B, P).
        config: ``matching`` and ``exclusion``.

    Returns:
        int64 (B, T); -1 where there is no template or no free patch.
    """
    if config.matching == "dot":
        templates, patches = _cosine_of_dot(templates, patches)
    elif config.exclusion == "released":
        templates, patches = F.normalize(templates.float(), dim=-1), F.normalize(patches.float(), dim=-1)
    # Templates that do not exist go last, where they can take nothing from those that do.
    order = chosen.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
    queue = templates.gather(1, order.unsqueeze(-1).expand_as(templates))
    if config.exclusion == "released":
        found = _released_greedy(queue, patches, paired)
    else:
        found = sample_similar(queue, patches, paired)
    back = torch.empty_like(found).scatter_(1, order, found)
    return torch.where(chosen, back, -1)


def _cosine_of_dot(templates: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors whose cosine orders patches as the dot product does: patches are lifted onto one sphere."""
    templates, patches = templates.float(), patches.float()
    square = patches.square().sum(dim=-1, keepdim=True)
    lift = (square.amax(dim=1, keepdim=True) - square).clamp_min(0).sqrt()
    return torch.cat((templates, torch.zeros_like(templates[..., :1])), -1), torch.cat((patches, lift), -1)


def _released_templates(shares: Tensor, paired: Tensor, count: int, noise: Tensor) -> Tensor:
    """As released: labels of 0..255, noise of U(0, 0.1), exclusion by subtracting the largest value."""
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
    """As released, serial over templates: the largest similarity is subtracted from a taken patch."""
    with without_autocast(patches.device):
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
