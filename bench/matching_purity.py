"""Share of the patches found by templates that are of their class, before training, by the share of texture.

    python -m bench.matching_purity ARCHIVE [--batches 12]

For each dataset with masks and each of its recommended images (at most --references of them): batches as in
`configs/pretrain/pscl-simclr.yaml`, an untrained network, and the sampler of the method. The masks of the other images
are used to count hits. Chance is the hit rate of random patches of the same images.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from bench.record import record
from pscl_hpc.archive import Archive
from pscl_hpc.config import load_config
from pscl_hpc.methods import PatchSample, Views, build_method, patch_purity
from pscl_hpc.methods.common.patches import patch_labels
from pscl_hpc.methods.pscl_simclr import PsclSimclr
from pscl_hpc.models import build_trunk
from pscl_hpc.pretraining.config import PretrainConfig
from pscl_hpc.pretraining.data import PretrainData, make_views
from pscl_hpc.seeding import Draws, derive_seed

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "pretrain" / "pscl-simclr.yaml"
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path)
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--references", type=int, default=2)
    parser.add_argument("--size", type=int, default=128, help="side of the views in pixels")
    arguments = parser.parse_args()
    rows = []
    with Archive(arguments.archive) as archive:
        for name, collection in archive.collections.items():
            for reference in collection.references[: arguments.references]:
                for found in measure(archive, name, reference, arguments):
                    rows.append({"dataset": name, "reference": reference} | found)
                    print(rows[-1], flush=True)
    content = {"size": arguments.size, "batches": arguments.batches, "rows": rows}
    command = f"python -m bench.matching_purity ARCHIVE --batches {arguments.batches} --size {arguments.size}"
    print(record("cpu-matching-purity", content, command=command))


@torch.no_grad()
def measure(
    archive: Archive, dataset: str, reference: str, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Purity and chance at each scale, coarse to fine, for each share of texture."""
    config = load_config(
        CONFIG,
        [
            f"data.archive={arguments.archive}",
            f"data.datasets=[{dataset}]",
            f"method.reference.ids=[{reference}]",
            f"views.size=[{arguments.size},{arguments.size}]",
            "batch_size=8",
            f"schedule.steps={arguments.batches}",
            "schedule.warmup_steps=0",
        ],
    )
    assert isinstance(config, PretrainConfig)
    data = PretrainData(archive, config)
    torch.manual_seed(derive_seed(config.seed, "weights"))
    method = build_method(config.method, build_trunk(config.model), data.setting).train()
    assert isinstance(method, PsclSimclr)
    device = torch.device("cpu")
    found: dict[tuple[float, int], list[tuple[float, float]]] = {}
    for step in range(arguments.batches):
        batch = data[step]
        views = make_views(batch, config, step, device)
        key = method.key_features(views)
        for share in SHARES:
            method.sampler.config = method.sampler.config.model_copy(update={"texture": share})
            draws = Draws(config.seed, step, batch.slots.places, device)
            for scale, sample in enumerate(method.sample_patches(views, key, draws)):
                grid = key.scales[scale].shape[2:]
                pairs = zip(
                    patch_purity(views, sample, *grid).tolist(),
                    at_random(views, sample, *grid).tolist(),
                    strict=True,
                )
                found.setdefault((share, scale), []).extend([*pairs][views.references :])
    scales = range(len(method.patch_heads))
    return [
        {"texture": share}
        | {
            name: [_mean(pair[which] for pair in found[share, scale]) for scale in scales]
            for which, name in enumerate(("purity", "chance"))
        }
        for share in SHARES
    ]


def _mean(values: Iterable[float]) -> float | None:
    """Mean of the finite values; None if there is none."""
    known = [value for value in values if math.isfinite(value)]
    return fmean(known) if known else None


def at_random(views: Views, sample: PatchSample, height: int, width: int) -> torch.Tensor:
    """(B,) expected purity of random patches of each image."""
    everything = torch.arange(height * width).expand(len(sample.key_patches), -1)
    found = patch_labels(views, everything, height, width)
    known = (found != 255).sum(dim=1)
    hits = torch.stack([(found == label).sum(dim=1) for label in sample.classes.tolist()], dim=1)
    share = hits / torch.where(known > 0, known.float(), torch.nan)[:, None]
    return torch.where(sample.valid, share, 0.0).sum(dim=1) / sample.valid.sum(dim=1)


if __name__ == "__main__":
    main()
