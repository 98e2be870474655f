"""The peers (`adapters.py`) at the shapes of ours, each in a separate process, as it may crash.

A peer that cannot run is skipped with the reason; one that is not correct on a small problem is not timed.
"""

import argparse
import subprocess
import sys
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.gpu.adapters import PEERS, Peer
from bench.gpu.measure import errors, measure_loss
from bench.gpu.run import UNFINISHED, Results, Setting, parse, reason_of
from bench.gpu.shapes import TEMPERATURE, grouping, key_of, loss_shapes, pairs, queue_shapes, queued
from bench.record import version_of
from pscl_kernels import patch_nt_xent, queue_info_nce

SMALL = 2048
"""Rows of the problem on which a peer must be correct."""

LOSS_ERROR, GRADIENT_ERROR = 0.01, 0.05
"""Largest relative errors against float64."""

PER_PEER = 40.0
"""Most seconds for one peer."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", help="measure this one here")
    setting, options = parse(parser)
    if options.peer:
        run(options.peer, setting)
        return
    unfinished = []
    for name in dict.fromkeys(peer.name for peer in PEERS):
        if setting.dry:
            run(name, setting)
        elif not in_own_process(name, setting):
            unfinished.append(name)
    if unfinished:
        print(f"no time left for {', '.join(unfinished)}: run this part again to resume")
        sys.exit(UNFINISHED)


def opened(setting: Setting) -> Results:
    return Results("peers", setting, {"temperature": TEMPERATURE}, sources=(), keep_failures=True)


def in_own_process(name: str, setting: Setting) -> bool:
    """Measure one peer; False if its time ended before it was done. A crash or a hang is recorded."""
    seconds = min(PER_PEER, setting.left())
    if seconds < 5:
        return False
    command = [sys.executable, "-m", "bench.gpu.peers", "--device", setting.device.type, "--peer", name]
    try:
        done = subprocess.run([*command, "--seconds", f"{seconds:.0f}"], timeout=seconds + 20, check=False)
        failed = f"ended with code {done.returncode}" if done.returncode else None
        if done.returncode == UNFINISHED:
            return False
    except subprocess.TimeoutExpired:
        failed = f"still running after {seconds + 20:.0f} s"
    if failed:
        opened(setting).add({"peer": name, "task": "all", "skipped": failed})
    return True


def run(name: str, setting: Setting) -> None:
    """Measure the peer at the main dtype's shapes that have no entry yet."""
    if setting.dry:
        torch.compiler.set_stance("force_eager")
    # Beyond the limit, a function that was compiled for many shapes would run without compilation.
    torch._dynamo.config.recompile_limit = 1000
    results = opened(setting)
    results.entries = [e for e in results.entries if e["peer"] != name or "skipped" not in e]
    for peer in PEERS:
        if peer.name != name:
            continue
        about = {
            "peer": name,
            "task": peer.task,
            "version": version_of(peer.package),
            "differs": peer.differs,
        }
        if about["version"] == "none" or (peer.needs_gpu and setting.dry):
            reason = f"{peer.package} is not installed" if about["version"] == "none" else "needs a GPU"
            results.add({**about, "skipped": reason})
            continue
        for shape in loss_shapes(setting) if peer.task == "loss" else queue_shapes(setting):
            grouped = getattr(shape, "groups", 0) > 0
            if shape.dtype == setting.dtype and shape.rows <= peer.most_rows and peer.groups >= grouped:
                results.measure({**about, **key_of(shape)}, partial(measured, peer, shape, setting))


def measured(peer: Peer, shape: Any, setting: Setting) -> dict[str, Any]:
    """Errors on a small problem and, if they are small, times at `shape`."""
    try:
        found = peer_errors(peer, shape, setting)
    except ImportError as error:
        return {"skipped": reason_of(error)}
    # NaN is not below a limit.
    if not (found["loss_error"] <= LOSS_ERROR and found.get("gradient_error", 0.0) <= GRADIENT_ERROR):
        return {**found, "failed": "not correct"}
    features, groups = problem(peer, shape, setting)
    return found | measure_loss(
        setting,
        lambda: peer.call(*features, *groups, TEMPERATURE),
        tuple(x for x in features if x.requires_grad),
        backward=has_gradient(peer, setting),
    )


def has_gradient(peer: Peer, setting: Setting) -> bool:
    return peer.gradient_on_cpu or not setting.dry


def problem(peer: Peer, shape: Any, setting: Setting) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
    """What a peer is called with: the features and, for a loss, the groups or None."""
    if peer.task == "queue":
        return queued(setting, shape), ()
    return pairs(setting, shape.rows, shape.width, shape.dtype), (
        grouping(setting, shape.rows, shape.groups),
    )


def peer_errors(peer: Peer, shape: Any, setting: Setting) -> dict[str, float]:
    """Relative errors of loss and gradient against float64, on at most `SMALL` rows and entries."""
    small = {name: min(getattr(shape, name), SMALL) for name in ("rows", "entries") if hasattr(shape, name)}
    features, groups = problem(peer, shape._replace(**small), setting)
    return errors(
        lambda *given: peer.call(*given, *groups, TEMPERATURE),
        lambda *given: definition(peer, *given, *groups, temperature=TEMPERATURE),
        features,
        gradient=has_gradient(peer, setting),
    )


def definition(peer: Peer, *given: Any, temperature: float) -> Tensor:
    """The value that a peer should return, for float64 features."""
    if peer.task == "queue":
        return queue_info_nce(*given, temperature=temperature, backend="reference")
    if not peer.self_pair:
        return patch_nt_xent(*given, temperature=temperature, backend="reference")
    z = torch.nn.functional.normalize(torch.cat(given[:2]), dim=1)
    logits, n = z @ z.T / temperature, len(given[0])
    positive = torch.cat([logits.diagonal(n), logits.diagonal(-n)])
    return (logits.logsumexp(1) - positive).mean()


if __name__ == "__main__":
    main()
