"""PSCL-SimCLR: image contrast on the bottleneck, patch contrast of sampled cells at every decoder scale.

Sci. Rep. 2025, doi 10.1038/s41598-025-32855-5; spec sections 3, 4 and 6. Shape legend as in ``sampling``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pscl_hpc.config import PretrainConfig, PsclSimclrConfig
from pscl_hpc.methods.base import CellSample, Method, MethodOutput, Setting, Views
from pscl_hpc.methods.sampling import choose_templates, match_templates
from pscl_hpc.models import CellHead, Features, GlobalHead, UNet
from pscl_hpc.seeding import Draws
from pscl_hpc.views import class_shares, paired_cells, partner_cells, view_to_source, warp
from pscl_kernels import patch_nt_xent, patch_similarity_stats

_CELLS_AT_ONCE = {"cpu": 1 << 16, "cuda": 1 << 22}
"""Cells projected and matched at a time: on a CPU what stays in its cache, elsewhere what bounds memory. It changes no
number."""


class PsclSimclr(Method):
    """PSCL with negatives from the batch.

    Args:
        trunk: The U-Net.
        config: Method settings.
        classes: Number of classes of the references' collection.
        ignored: Classes whose annotation is not to be trusted; they give no templates.
        backend: Backend of the contrastive operations.
    """

    def __init__(
        self,
        trunk: UNet,
        config: PsclSimclrConfig,
        *,
        classes: int,
        ignored: tuple[int, ...] = (),
        backend: str = "auto",
    ) -> None:
        super().__init__(trunk)
        self.config = config
        self.classes = classes
        self.ignored = ignored
        self.backend = backend
        self.global_head = GlobalHead(
            trunk.config.widths[-1], hidden=config.hidden, projection=config.projection
        )
        self.cell_heads = nn.ModuleList(
            CellHead(width, hidden=config.hidden, projection=config.projection, groups=config.head_groups)
            for width in trunk.scale_widths
        )
        self.scale_weights = config.scale_weights or (1.0,) * len(self.cell_heads)

    @classmethod
    def build(cls, trunk: UNet, config: PretrainConfig, setting: Setting) -> PsclSimclr:
        """See :class:`Method`. ``setting.annotated`` is needed."""
        assert isinstance(config.method, PsclSimclrConfig)
        if setting.annotated is None:
            raise ValueError("pscl-simclr needs the collection of its references")
        return cls(
            trunk,
            config.method,
            classes=len(setting.annotated.classes),
            ignored=setting.annotated.ignore_classes,
            backend=config.runtime.kernels,
        )

    def forward(self, views: Views, draws: Draws, measure: bool = False) -> MethodOutput:
        """``(1 - r) * image loss + r * mean over scales of the patch loss`` with r = ``patch_weight``."""
        query, key = self.trunk(views.query), self.trunk(views.key)
        image_loss = self._contrast(
            self.global_head(query.bottleneck), self.global_head(key.bottleneck), None
        )
        terms = {"image/loss": image_loss.detach()}
        patch_loss = torch.zeros_like(image_loss)
        for scale, sample in enumerate(self.sample_cells(views, key, draws)):
            height, width = key.scales[scale].shape[2:]
            key_cells = sample.key_cells.clamp_min(0)
            query_cells = partner_cells(views.geometry, key_cells, height, width)
            head = self.cell_heads[scale]
            q = head(_gather(query.scales[scale], query_cells)).flatten(0, 1)
            k = head(_gather(key.scales[scale], key_cells)).flatten(0, 1)
            groups = sample.groups.flatten()
            loss = self._contrast(q, k, groups)
            patch_loss = patch_loss + self.scale_weights[scale] * loss / len(self.scale_weights)
            terms[f"scale{scale}/loss"] = loss.detach()
            if measure:
                terms |= self._measure(scale, views, sample, q.detach(), k.detach(), (height, width))
        ratio = self.config.patch_weight
        return MethodOutput((1 - ratio) * image_loss + ratio * patch_loss, terms)

    @torch.no_grad()
    def sample_cells(self, views: Views, key: Features, draws: Draws) -> tuple[CellSample, ...]:
        """Cells per scale, coarse to fine: those of the references by class, those of the others by similarity.

        Reference ``r`` gives the templates of every R-th other image, starting with the r-th.
        """
        labels = self._one_hot(views)
        generators = draws.each("templates", range(views.references))
        samples = []
        for scale, (cell_map, head) in enumerate(zip(key.scales, self.cell_heads, strict=True)):
            samples.append(self._sample_scale(scale, cell_map, head, views, labels, generators))
        return tuple(samples)

    def _sample_scale(
        self,
        scale: int,
        cell_map: Tensor,
        head: nn.Module,
        views: Views,
        labels: Tensor,
        generators: list[torch.Generator],
    ) -> CellSample:
        references = views.references
        height, width = cell_map.shape[2:]
        count = self.config.templates_per_class * self.config.template_growth**scale
        paired = paired_cells(views.geometry, height, width)
        own = views.geometry[:references]
        shares = class_shares(labels, own, height, width, antialias=self.config.antialias).flatten(2)
        chosen = choose_templates(shares, paired[:references], count, self.config, generators)
        classes = torch.arange(self.classes, device=chosen.device).repeat_interleave(
            chosen.shape[1] // self.classes
        )
        templates = head(_gather(cell_map[:references], chosen.clamp_min(0)))
        others = len(paired) - references
        if not others:
            return CellSample(chosen, classes)
        giver = torch.arange(others, device=chosen.device) % references
        found = []
        # Images are matched independently, so that the projections of all cells never exist at once.
        at_once = max(1, _CELLS_AT_ONCE.get(chosen.device.type, 1 << 22) // paired.shape[1])
        for part in torch.split(torch.arange(others, device=chosen.device), at_once):
            cells = head(_cells(cell_map[references + part]))
            found.append(
                match_templates(
                    templates[giver[part]].to(cells),
                    (chosen >= 0)[giver[part]],
                    cells,
                    paired[references + part],
                    self.config,
                )
            )
        return CellSample(torch.cat((chosen, *found)), classes)

    def _one_hot(self, views: Views) -> Tensor:
        """Labels of the references in view k, (R, C, h, w) in 0..1; unknown and ignored pixels belong to no class."""
        labels = views.labels[: views.references].long()
        shares = F.one_hot(torch.where(labels < self.classes, labels, self.classes), self.classes + 1)
        shares = shares[..., : self.classes].permute(0, 3, 1, 2).to(views.query.dtype)
        if self.ignored:
            shares[:, list(self.ignored)] = 0
        return warp(shares, views.geometry[: views.references])

    def _contrast(self, q: Tensor, k: Tensor, groups: Tensor | None) -> Tensor:
        return patch_nt_xent(
            q,
            k,
            groups,
            temperature=self.config.temperature,
            process_group=self.process_group,
            backend=self.backend,
        )

    @torch.no_grad()
    def _measure(
        self, scale: int, views: Views, sample: CellSample, q: Tensor, k: Tensor, grid: tuple[int, int]
    ) -> dict[str, Tensor]:
        positive, negative = patch_similarity_stats(q, k, sample.groups.flatten())
        return {
            f"scale{scale}/positive": positive,
            f"scale{scale}/negative": negative,
            f"scale{scale}/templates": sample.valid[: views.references].sum() / views.references,
            f"scale{scale}/purity": cell_purity(views, sample, *grid)[views.references :].nanmean(),
        }


@torch.no_grad()
def cell_purity(views: Views, sample: CellSample, height: int, width: int) -> Tensor:
    """Share of each image's sampled cells whose centre has the template's class, (B,); NaN where masks are unknown."""
    rows, cols = views.labels.shape[1:]
    cells = sample.key_cells.clamp_min(0)
    y = (torch.div(cells, width, rounding_mode="floor") + 0.5) * rows / height - 0.5
    x = (cells % width + 0.5) * cols / width - 0.5
    source_y, source_x = view_to_source(views.geometry, y, x, rows, cols)
    index = source_y.round().long().clamp(0, rows - 1) * cols + source_x.round().long().clamp(0, cols - 1)
    found = views.labels.flatten(1).gather(1, index).long()
    known = sample.valid & (found != 255) & views.comparable[:, None]
    hits = (known & (found == sample.classes)).sum(dim=1)
    return hits / torch.where(known.any(dim=1), known.sum(dim=1).float(), torch.nan)


def _cells(cell_map: Tensor) -> Tensor:
    """Map (B, C, H, W) as cell vectors (B, H * W, C); no copy in channels-last memory."""
    return cell_map.permute(0, 2, 3, 1).flatten(1, 2)


def _gather(cell_map: Tensor, cells: Tensor) -> Tensor:
    """Vectors (B, T, C) of the cells (B, T) of a map (B, C, H, W)."""
    flat = _cells(cell_map)
    return flat.gather(1, cells.unsqueeze(-1).expand(-1, -1, flat.shape[2]))
