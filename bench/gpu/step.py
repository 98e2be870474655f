"""The whole pretraining step beside the released code: at nine images and at the largest batch each fits.

    RELEASED=CHECKOUT python -m bench.gpu.step

A step is forward, losses, backward and Adam, on views that are ready on the device. Each implementation runs in a
process of its own. Without RELEASED ours is measured alone.
"""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.gpu import tracing
from bench.gpu.check import require
from bench.gpu.measure import measure
from bench.gpu.results import TOOLKIT, Results, fingerprint, folder
from bench.gpu.setting import UNFINISHED, Setting, parse
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
    tie_breaks,
)
from pscl_hpc.config import RuntimeConfig
from pscl_hpc.methods import Views
from pscl_hpc.training import autocast, setup_device

FORMS = ("released", "ours", "ours, bf16")
"""bf16: the network under autocast, as `runtime.precision: bf16` does."""

SMALL = 8
"""Unlabelled images of the small batch; the reference makes it nine."""

MOST = 1024
"""Largest batch tried."""

SIZE = 376
"""Side of an image in pixels, as in the released configuration."""

LINE = '{"form"'
"""What a line of a child process begins with that is an entry."""

Step = Callable[[], object]


def main() -> None:
    setting = parse(__doc__)
    require(setting, "patch_nt_xent", "sample_similar")
    if setting.only is not None:
        child(setting, setting.only)
        return
    results = opened(setting)
    forms = list(FORMS[: 2 if setting.tiny else None])
    if "RELEASED" not in os.environ:
        print("RELEASED names no checkout of the released code: ours is measured alone")
        forms.remove("released")
    failed, unfinished = [], []
    for index, form in enumerate(forms):
        share = setting.left() / (len(forms) - index)
        code = in_own_process(setting, form, share, results) if setting.left() > 20 else UNFINISHED
        if code == UNFINISHED:
            unfinished.append(form)
        elif code:
            failed.append(f"{form} (code {code})")
        results.header["summary"] = summary(results.entries)
        results.header["unfinished"] = unfinished
        results.write()
    print(json.dumps(results.header["summary"]))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
    if unfinished:
        print(f"no time left for larger batches of {', '.join(unfinished)}: run this part again to go on")
        sys.exit(UNFINISHED)
    results.end(leave_out=lambda entry: entry["form"] == "released")


def opened(setting: Setting) -> Results:
    also = {"toolkit": fingerprint(TOOLKIT)}
    return Results("step", setting, {"size": size_of(setting)}, of_kernels=True, also=also)


def size_of(setting: Setting) -> int:
    return 32 if setting.tiny else SIZE


def in_own_process(setting: Setting, form: str, seconds: float, results: Results) -> int:
    """Let a process of its own try batch after batch, and keep every entry that it prints; its exit code."""
    command = [sys.executable, "-m", "bench.gpu.step", "--device", setting.device.type]
    command += ["--only", form, "--seconds", f"{seconds:.0f}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(LINE):
                results.add(json.loads(line))
    return process.returncode


def child(setting: Setting, form: str) -> None:
    """Measure one form: the small batch with a profile, then ever larger ones until memory ends.

    Ends the program with UNFINISHED where time does; batches that have an entry are not measured again.
    """
    if not setting.tiny:
        setup_device(RuntimeConfig())
    entries = [entry for entry in opened(setting).entries if entry["form"] == form]
    if form == "released":
        # The released code leaves torch's precision of matrix products as it is.
        torch.set_float32_matmul_precision("highest")
        if not any(entry["what"] == "loss" for entry in entries):
            print_entry({"form": form, "what": "loss", **losses(setting)})
    known = {entry["images"] - 1: entry for entry in entries if entry["what"] == "step"}

    def fits(batch: int) -> bool:
        if batch not in known:
            if setting.left() <= 0:
                sys.exit(UNFINISHED)
            known[batch] = measured(setting, form, batch, profiled=batch == SMALL or setting.tiny)
            print_entry(known[batch])
        return "failed" not in known[batch]

    if setting.tiny:
        fits(1)
    else:
        largest(fits, SMALL, MOST)


def largest(fits: Callable[[int], bool], first: int, most: int) -> int:
    """The greatest batch, to an eighth, that `fits`, by doubling from `first` and then halving the gap; 0 for none."""
    if not fits(first):
        return 0
    good, bad = first, most + 1
    while 2 * good < bad:
        if fits(2 * good):
            good *= 2
        else:
            bad = 2 * good
    while bad <= most and bad - good > max(1, good // 8):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def print_entry(entry: dict[str, Any]) -> None:
    print(json.dumps(entry), flush=True)


def measured(setting: Setting, form: str, batch: int, *, profiled: bool) -> dict[str, Any]:
    """Seconds, images per second and memory of a step of `batch` unlabelled images and the reference."""
    entry: dict[str, Any] = {"form": form, "what": "step", "images": batch + 1}
    found: dict[str, Any]
    try:
        step, model = build(setting, form, make_batch(size_of(setting), batch, setting.device))
        found = measure(setting, step, seconds=3.0, most=30)
        if "median_ms" in found:
            found["images_per_second"] = (batch + 1) / found["median_ms"] * 1e3
            if not setting.tiny:
                found["peak_bytes"] = torch.cuda.max_memory_allocated()
            if profiled:
                name = form.replace(", ", "-")
                found["profile"] = tracing.profile(setting, step, folder() / f"trace-step-{name}.json.gz")
        del step, model
    except torch.cuda.OutOfMemoryError:
        found = {"failed": "out of memory"}
    gc.collect()
    if not setting.tiny:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return entry | found


def build(setting: Setting, form: str, views: Views) -> tuple[Step, torch.nn.Module]:
    """The step of one form, and its model, on these views."""
    ours = build_ours(RELEASED if form == "released" else OURS, setting.device)
    if form == "released":
        module, functions = load_released(Path(os.environ["RELEASED"]), setting.device)
        inputs = released_inputs(views)
        model: torch.nn.Module = build_released(module, ours)
        del ours, views

        def forward_backward() -> object:
            return released_step(model, functions, inputs)

    else:
        model = ours
        runtime = RuntimeConfig(precision="bf16" if form.endswith("bf16") else "fp32")

        def forward_backward() -> object:
            with autocast(setting.device, runtime):
                return ours_step(ours, views)

    optimiser = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=1e-4)

    def step() -> None:
        optimiser.zero_grad()
        forward_backward()
        optimiser.step()

    return step, model


def losses(setting: Setting) -> dict[str, float]:
    """The loss of both on the same weights, views and tie-breaks, ours with every released behaviour switched on."""
    views = make_batch(size_of(setting), 1 if setting.tiny else SMALL, setting.device)
    module, functions = load_released(Path(os.environ["RELEASED"]), setting.device)
    with tie_breaks(views):
        model = build_released(module, build_ours(RELEASED, setting.device))
        theirs, _ = released_step(model, functions, released_inputs(views))
    ours, _ = ours_step(build_ours(RELEASED, setting.device), views)
    return {"released": float(theirs), "ours": float(ours)}


def summary(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Per form the small batch, the largest and the fastest; and by how much ours is faster than the released code."""
    found: dict[str, Any] = {}
    for form in FORMS:
        ran = [e for e in entries if e["form"] == form and "images_per_second" in e]
        if not ran:
            continue
        small, largest = (chosen(ran, key=lambda e: e["images"]) for chosen in (min, max))
        found[form] = {
            "images": small["images"],
            "images_per_second": small["images_per_second"],
            "peak_bytes": small["peak_bytes"],
            "largest_images": largest["images"],
            "largest_images_per_second": largest["images_per_second"],
            "largest_peak_bytes": largest["peak_bytes"],
            "most_images_per_second": max(e["images_per_second"] for e in ran),
        }
    if "released" in found:
        theirs = found["released"]
        for form in FORMS[1:]:
            if form in found:
                ours = found[form]
                ours["speedup_small"] = ours["images_per_second"] / theirs["images_per_second"]
                ours["speedup_best"] = ours["most_images_per_second"] / theirs["most_images_per_second"]
    return found


if __name__ == "__main__":
    main()
