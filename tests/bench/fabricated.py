"""Result files as a GPU would leave them, with invented numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DEVICE = "NVIDIA H100 80GB HBM3"


def write(folder: Path, part: str, result: dict[str, Any], *, slug: str = "h100", tiny: bool = False) -> Path:
    """One file of `bench/gpu.sh`."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "name": f"gpu-{slug}-{part}",
        "command": "bash bench/gpu.sh OUT",
        "commit": "0123456789",
        "date": "2026-01-02T03:04:05+00:00",
        "device": {"cpu": "some", "cpu_count": 16, "gpu": [DEVICE]},
        "versions": {"python": "3.12.3", "torch": "2.11.0", "triton": "3.6.0"},
        "result": {"tiny": tiny, "circumstances": {"device": DEVICE}, **result},
    }
    path = folder / f"{content['name']}.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def timed(milliseconds: float, peak: float, floor: float | None = None) -> dict[str, Any]:
    """What `measure` gives."""
    found: dict[str, Any] = {
        "q20_ms": 0.98 * milliseconds,
        "median_ms": milliseconds,
        "q80_ms": 1.03 * milliseconds,
        "peak_bytes": peak,
        "repeats": 20,
    }
    return found | ({} if floor is None else {"floor_ms": floor, "share_of_floor": floor / milliseconds})


def everything(folder: Path) -> Path:
    """All parts, with figures in the shape that the real ones may have."""
    write(
        folder,
        "ceilings",
        {
            "copy_bytes_per_second": 3.0e12,
            "flops_per_second": 790e12,
            "exponentials_per_second": 3.7e12,
            "measured": [],
        },
    )
    ours, peers = [], []
    for rows in (16_384, 65_536, 262_144, 1_048_576):
        for width in (64, 128, 256):
            for groups in (0, 4):
                kept = 0.75 if groups else 1.0
                unit = kept * (rows / 65_536) ** 2 * max(width / 64, 0.8)
                shape = {"rows": rows, "width": width, "groups": groups, "dtype": "bfloat16"}
                for name, factor in (("triton, row", 1.0), ("triton, symmetric", 0.85), ("chunked", 6.0)):
                    if name == "chunked" and rows > 65_536:
                        continue
                    ours.append(
                        {
                            **shape,
                            "implementation": name,
                            "forward": timed(1.4 * factor * unit, 8 * rows * width, 1.16 * unit),
                            "forward and backward": timed(
                                3.4 * factor * unit, 14 * rows * width, 2.55 * unit
                            ),
                            "loss_error": 1e-5,
                            "gradient_error": 2e-3,
                        }
                    )
                if rows <= 65_536:
                    for name, factor in (("torch, eager", 9.0), ("FlexAttention", 2.2), ("KeOps", 30.0)):
                        peers.append(
                            {
                                "peer": name,
                                "task": "loss",
                                "version": "1",
                                "differs": "",
                                **shape,
                                "loss_error": 1e-3,
                                "gradient_error": 1e-2,
                                "forward": timed(1.4 * factor * unit, 8.0 * rows * rows),
                                "forward and backward": timed(3.4 * factor * unit, 12.0 * rows * rows),
                            }
                        )
    peers.append(
        {"peer": "Liger-Kernel", "task": "loss", "version": "0.8.5", "differs": "", "skipped": "has none"}
    )
    peers.append(
        {
            "peer": "Broken", "task": "loss", "version": "2", "differs": "", "rows": 16_384, "width": 64, "groups": 0,
            "dtype": "bfloat16", "loss_error": 0.4, "failed": "not correct",
        }
    )  # fmt: skip
    write(folder, "patch-nt-xent", {"temperature": 0.1, "shipped": "triton, symmetric", "measured": ours})
    queue = []
    for width in (64, 128):
        for labels in ("hard", "soft"):
            queue.append(
                {
                    "rows": 65_536, "entries": 65_536, "width": width, "dtype": "bfloat16", "labels": labels,
                    "implementation": "triton", "forward": timed(1.5, 1e7, 1.2),
                    "forward and backward": timed(3.0, 2e7, 1.4),
                }
            )  # fmt: skip
    peers.append(
        {
            "peer": "SDPA flash", "task": "queue", "version": "2.11", "differs": "hard labels", "rows": 65_536,
            "entries": 65_536, "width": 64, "dtype": "bfloat16", "loss_error": 1e-4, "gradient_error": 1e-3,
            "forward": timed(2.5, 1e7), "forward and backward": timed(2.6, 2e7),
        }
    )  # fmt: skip
    write(folder, "queue-info-nce", {"temperature": 0.1, "measured": queue})
    write(folder, "peers", {"temperature": 0.1, "measured": peers})
    sampling = []
    for batch, patches in ((256, 35_344), (256, 8_836), (256, 141_376), (8, 35_344)):
        for templates in (64, 240, 480):
            floor = batch * patches / 256 / 35_344 * 0.39 * max(1, templates / 263)
            shape = {
                "batch": batch,
                "templates": templates,
                "patches": patches,
                "width": 64,
                "dtype": "bfloat16",
            }
            for name, milliseconds in (
                ("triton", 1.6 * floor),
                ("released loop", 400 * floor * templates / 64),
            ):
                sampling.append(
                    {
                        **shape, "implementation": name, "ms_per_image": milliseconds / batch, "images_measured": batch,
                        "share_exact": 1.0, **timed(milliseconds, 4 * batch * templates * patches / 128, floor),
                    }
                )  # fmt: skip
    write(folder, "sample-similar", {"measured": sampling})
    write(folder, "step", {"size": 376, "summary": summary(), "measured": []})
    write(
        folder,
        "pretrain",
        {
            "measured": [
                {"batch_size": 8, "precision": "bf16", "images_per_second": 900.0, "peak_mb": 3000},
                {"batch_size": 512, "precision": "bf16", "failed": "out of memory"},
            ]
        },
    )
    return folder


def summary() -> dict[str, Any]:
    """Of the whole step."""
    released = {
        "images": 9, "images_per_second": 10.0, "peak_bytes": 8 * 2**30, "largest_images": 65,
        "largest_images_per_second": 20.0, "largest_peak_bytes": 70 * 2**30, "most_images_per_second": 20.0,
    }  # fmt: skip
    ours = {
        "images": 9, "images_per_second": 150.0, "peak_bytes": 2 * 2**30, "largest_images": 513,
        "largest_images_per_second": 900.0, "largest_peak_bytes": 70 * 2**30, "most_images_per_second": 900.0,
        "speedup_small": 15.0, "speedup_best": 45.0,
    }  # fmt: skip
    return {"released": released, "ours": ours}
