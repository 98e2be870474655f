"""The whole pretraining step, ours and the released code, over batch sizes up to the largest that fits into memory.

    RELEASED=CHECKOUT python -m bench.gpu.step

A step is forward, losses, backward and Adam, on views that are already on the device. Without RELEASED only ours is
measured. `bench/step_vs_released.py` compares the losses.
"""

import argparse
import gc
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.gpu.check import require
from bench.gpu.measure import measure
from bench.gpu.run import KERNELS, TOOLKIT, Results, Setting, parse
from bench.released import (
    OURS,
    RELEASED,
    build_ours,
    build_released,
    load_released,
    make_batch,
    ours_step,
    released_inputs,
    released_step,
)
from pscl_hpc.config import RuntimeConfig
from pscl_hpc.training import autocast, setup_device

FORMS = ("released", "ours", "ours, bf16")
"""bf16: the network under autocast, as with `runtime.precision: bf16`."""

BATCHES = (8, 16, 32, 64, 128, 256, 512, 1024)
"""Unlabelled images; the annotated reference comes on top."""

SIZE = 376
"""Side of an image in pixels, as in the released configuration."""


def main() -> None:
    setting, _ = parse(argparse.ArgumentParser(description=__doc__))
    run(setting)


def run(setting: Setting) -> None:
    """Measure every form at growing batch sizes, until one does not fit."""
    require(setting, "patch_nt_xent", "sample_similar")
    size, batches = (32, BATCHES[:1]) if setting.dry else (SIZE, BATCHES)
    forms = FORMS[1:2] if setting.dry else FORMS[1:]
    checkout = os.environ.get("RELEASED")
    if not setting.dry:
        setup_device(RuntimeConfig())
    results = Results("step", setting, {"size": size}, sources=(KERNELS, TOOLKIT))
    try:
        for form in ("released", *forms) if checkout else forms:
            for batch in batches:
                key = {"form": form, "images": batch + 1}
                if "failed" in results.measure(key, partial(measured, setting, form, size, batch, checkout)):
                    break
    finally:  # also if time is up
        results.header["summary"] = summary(results.entries)
        results.write()
    results.end(ignore=lambda entry: entry["form"] == "released")


def measured(setting: Setting, form: str, size: int, batch: int, checkout: str | None) -> dict[str, Any]:
    """Milliseconds, images per second and peak memory of a step, weights included."""
    # The released code leaves torch's precision of matrix products as it is; ours is that of `setup_device`.
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest" if form == "released" else before)
    try:
        found = measure(setting, build(setting, form, size, batch, checkout), milliseconds=1500)
    finally:
        torch.set_float32_matmul_precision(before)
    if "median_ms" in found:
        found["images_per_second"] = (batch + 1) / found["median_ms"] * 1e3
        found["peak_bytes"] += found["held_bytes"]
    return found


def build(setting: Setting, form: str, size: int, batch: int, checkout: str | None) -> Callable[[], object]:
    """The step of one form."""
    gc.collect()  # the model of the batch before
    views = make_batch(size, batch, setting.device)
    ours = build_ours(RELEASED if form == "released" else OURS, setting.device)
    model: torch.nn.Module = ours
    if form == "released":
        assert checkout is not None
        module, functions = load_released(Path(checkout), setting.device)
        model, inputs = build_released(module, ours), released_inputs(views)
    runtime = RuntimeConfig(precision="bf16" if form.endswith("bf16") else "fp32")
    optimiser = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=1e-4)

    def step() -> None:
        optimiser.zero_grad()
        if form == "released":
            released_step(model, functions, inputs)
        else:
            with autocast(setting.device, runtime):
                ours_step(ours, views)
        optimiser.step()

    return step


def summary(entries: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each form the smallest, largest and fastest batch, and how much faster ours is than the released code."""
    found: dict[str, dict[str, Any]] = {}
    for form in FORMS:
        ran = [e for e in entries if e["form"] == form and "images_per_second" in e]
        if ran:
            small, largest = min(ran, key=lambda e: e["images"]), max(ran, key=lambda e: e["images"])
            keys = ("images", "images_per_second", "peak_bytes")
            found[form] = {key: small[key] for key in keys} | {f"largest_{key}": largest[key] for key in keys}
            found[form]["most_images_per_second"] = max(e["images_per_second"] for e in ran)
    theirs = found.get("released")
    for ours in (found[form] for form in FORMS[1:] if form in found and theirs):
        assert theirs is not None
        for name, key in (("small", "images_per_second"), ("best", "most_images_per_second")):
            ours[f"speedup_{name}"] = ours[key] / theirs[key]
    return found


if __name__ == "__main__":
    main()
