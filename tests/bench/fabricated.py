"""Result files as a run on a GPU would write them, with invented numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DEVICE = "NVIDIA H100 80GB HBM3"


def write(folder: Path, part: str, result: dict[str, Any], *, slug: str = "h100", dry: bool = False) -> Path:
    """One file of `bench/gpu.sh`."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "name": f"gpu-{slug}-{part}",
        "command": "bash bench/gpu.sh OUT",
        "commit": "0123456789",
        "date": "2026-01-02T03:04:05+00:00",
        "device": {"cpu": "some", "cpu_count": 16, "gpu": [DEVICE]},
        "versions": {"python": "3.12.3", "torch": "2.11.0", "triton": "3.6.0"},
        "result": {"dry": dry, "circumstances": {"device": DEVICE}, **result},
    }
    path = folder / f"{content['name']}.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def timed(milliseconds: float, floor: float | None = None) -> dict[str, Any]:
    """A result of `measure`."""
    found = {"q20_ms": 0.98 * milliseconds, "median_ms": milliseconds, "q80_ms": 1.03 * milliseconds}
    found["peak_bytes"] = 1e6 * milliseconds
    return found | ({} if floor is None else {"floor_ms": floor, "share_of_floor": floor / milliseconds})


def both(forward: float, backward: float, floor: float | None = None) -> dict[str, Any]:
    return {"forward": timed(forward, floor and 0.4 * floor), "forward and backward": timed(backward, floor)}


def everything(folder: Path) -> Path:
    """All parts, with plausible figures."""
    ours, peers = [], []
    for rows in (16_384, 65_536, 1_048_576):
        for width in (64, 128, 256):
            for groups in (0, 4):
                unit = (0.75 if groups else 1.0) * (rows / 65_536) ** 2 * width / 64
                shape = {"rows": rows, "width": width, "groups": groups, "dtype": "bfloat16"}
                times = both(1.19 * unit, 2.89 * unit, 2.55 * unit)
                ours.append({**shape, "implementation": "triton", **times, "loss_error": 1e-5})
                if rows <= 65_536:
                    about = {"peer": "torch, eager", "task": "loss", "version": "1", "differs": ""}
                    peers.append({**about, **shape, "loss_error": 1e-3, **both(12 * unit, 30 * unit)})
    write(folder, "patch-nt-xent", {"temperature": 0.1, "measured": ours})
    peers += [
        {"peer": "Absent", "task": "loss", "version": "none", "differs": "", "skipped": "not installed"},
        {**shape, "peer": "Broken", "task": "loss", "version": "2", "loss_error": 0.4, "failed": "not correct"},
        {"peer": "SDPA flash", "task": "queue", "rows": 65_536, "entries": 65_536, "width": 64, "dtype": "bfloat16",
         "differs": "hard labels", **both(2.5, 2.6)},
    ]  # fmt: skip
    write(folder, "peers", {"temperature": 0.1, "measured": peers})
    queue = {"rows": 65_536, "entries": 65_536, "width": 64, "dtype": "bfloat16", "implementation": "triton"}
    measured = [{**queue, "labels": labels, **both(1.5, 3.0, 1.4)} for labels in ("hard", "soft")]
    write(folder, "queue-info-nce", {"temperature": 0.1, "measured": measured})
    sampling = []
    for batch, patches in ((256, 35_344), (8, 35_344)):
        floor = 0.39 * batch / 256
        shape = {"batch": batch, "templates": 64, "patches": patches, "width": 64, "dtype": "bfloat16"}
        for name, milliseconds in (("triton", 1.6 * floor), ("released loop", 400 * floor)):
            times = {"ms_per_image": milliseconds / batch, **timed(milliseconds, floor)}
            sampling.append({**shape, "implementation": name, **times})
    write(folder, "sample-similar", {"measured": sampling})
    rate = {"images": 9, "peak_bytes": 2**33, "largest_images": 65, "largest_peak_bytes": 2**36}
    released = {
        **rate,
        "images_per_second": 10.0,
        "largest_images_per_second": 20.0,
        "most_images_per_second": 20.0,
    }
    ours = {**rate, "images_per_second": 150.0, "largest_images_per_second": 900.0, "most_images_per_second": 900.0,
            "speedup_small": 15.0, "speedup_best": 45.0}  # fmt: skip
    write(folder, "step", {"size": 376, "summary": {"released": released, "ours": ours}, "measured": []})
    runs = [
        {"batch_size": 8, "precision": "bf16", "images_per_second": 900.0, "peak_mb": 3000},
        {"batch_size": 512, "precision": "bf16", "failed": "out of memory"},
    ]
    write(folder, "pretrain", {"measured": runs})
    return folder
