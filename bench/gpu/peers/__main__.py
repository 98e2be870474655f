"""The peers at the shapes of ours, each in a process of its own: what one breaks is its own.

A peer that cannot be imported is skipped with the reason; one that is not correct on a small problem is not timed.
"""

import subprocess
import sys
from typing import Any

import torch
from torch import Tensor

from bench.gpu import oracles, timing
from bench.gpu.measure import attempt, measure, reason
from bench.gpu.peers import PEERS
from bench.gpu.peers.base import Peer, version
from bench.gpu.results import Results
from bench.gpu.setting import UNFINISHED, Setting, parse
from bench.gpu.shapes import (
    TEMPERATURE,
    LossShape,
    QueueShape,
    SamplingShape,
    grouping,
    loss_shapes,
    name_of,
    pairs,
    patches_of,
    queue_shapes,
    queued,
    sampling_shapes,
)

SMALL = 2048
"""Rows of the problem on which a peer must be correct."""

LOSS_ERROR, GRADIENT_ERROR = 0.01, 0.05
"""Relative errors against float64 beyond which a peer counts as wrong."""

PER_PEER = 120.0
"""Seconds for one peer."""


def main() -> None:
    setting = parse(__doc__)
    if setting.tiny:
        torch.compiler.set_stance("force_eager")  # a dry run compiles nothing
    # A compiled function that was compiled for too many shapes would fall back to running eagerly.
    torch._dynamo.config.recompile_limit = 1000
    names = list(dict.fromkeys(peer.name for peer in PEERS))
    if setting.only is not None or setting.tiny:
        for name in names:
            if setting.only in (None, name):
                run(name, setting)
        return
    unfinished = False
    for name in names:
        if setting.left() < 10:
            print(f"no time left for {name}: run this part again to go on")
            sys.exit(UNFINISHED)
        unfinished |= not in_own_process(name, setting)
    if unfinished:
        sys.exit(UNFINISHED)


def in_own_process(name: str, setting: Setting) -> bool:
    """Measure one peer; False where it can go on, for its time ended. A crash or an overrun becomes an entry."""
    seconds = min(PER_PEER, setting.left())
    command = [sys.executable, "-m", "bench.gpu.peers", "--device", setting.device.type]
    try:
        code = subprocess.run(
            [*command, "--only", name, "--seconds", f"{seconds:.0f}"], timeout=seconds + 30, check=False
        ).returncode
        if code == UNFINISHED:
            return False
        failed = f"ended with code {code}" if code else None
    except subprocess.TimeoutExpired:
        failed = f"cut off after {seconds + 30:.0f} s"
    if failed:
        opened(setting).add({"peer": name, "task": "all", "skipped": failed})
    return True


def opened(setting: Setting) -> Results:
    return Results("peers", setting, {"temperature": TEMPERATURE}, of_kernels=False)


def run(name: str, setting: Setting) -> None:
    """Measure the peer called `name` at every shape that it can do and that has no entry yet.

    Ends the program with UNFINISHED where time does.
    """
    results = opened(setting)
    results.entries = [e for e in results.entries if e["peer"] != name or "skipped" not in e]
    for peer in PEERS:
        if peer.name != name:
            continue
        about = {"peer": name, "task": peer.task, "version": version(peer.package), "differs": peer.differs}
        if peer.needs_gpu and setting.tiny:
            results.add({**about, "skipped": "needs a GPU"})
            continue
        try:
            call = peer.build(setting, TEMPERATURE)
        except Exception as error:  # an import of theirs may fail in any way
            results.add({**about, "skipped": reason(error)})
            continue
        for shape in shapes_of(peer, setting):
            key = {k: name_of(v) if isinstance(v, torch.dtype) else v for k, v in shape._asdict().items()}
            if results.has(peer=name, task=peer.task, **key):
                continue
            if setting.left() < 0:
                print(f"no time left for {name} at {key}: run this part again to go on")
                sys.exit(UNFINISHED)
            results.add({**about, **key, **measured(peer, call, shape, setting)})
            torch.cuda.empty_cache()


def shapes_of(peer: Peer, setting: Setting) -> list[Any]:
    """The shapes of the peer's task in the first dtype, as far as it goes."""
    dtype = setting.dtypes[0]
    if peer.task == "loss":
        found = [
            s for s in loss_shapes(setting) if s.rows <= peer.most_rows and (peer.groups or not s.groups)
        ]
        return [s for s in found if s.dtype == dtype]
    if peer.task == "queue":
        return [s for s in queue_shapes(setting) if s.dtype == dtype and s.rows <= peer.most_rows]
    return [s for s in sampling_shapes(setting) if s.dtype == dtype]


def measured(peer: Peer, call: Any, shape: Any, setting: Setting) -> dict[str, Any]:
    """Errors on a small problem, and times at `shape` where they are small enough."""
    if isinstance(shape, LossShape):
        return attempt(lambda: _loss(peer, call, shape, setting))
    if isinstance(shape, QueueShape):
        return attempt(lambda: _queue(peer, call, shape, setting))
    return attempt(lambda: _top1(call, shape, setting))


def _loss(peer: Peer, call: Any, shape: LossShape, setting: Setting) -> dict[str, Any]:
    gradients = peer.gradients_on_cpu or not setting.tiny
    small = min(shape.rows, SMALL)
    q, k = pairs(setting, small, shape.width, shape.dtype)
    ids = grouping(setting, small, shape.groups)

    def truth(a: Tensor, b: Tensor) -> Tensor:
        return oracles.loss(a, b, ids, TEMPERATURE, self_pair=peer.self_pair)

    found: dict[str, Any] = oracles.errors(lambda a, b: call(a, b, ids), truth, (q, k), gradients=gradients)
    if _wrong(found):
        return {**found, "failed": "not correct"}
    q, k = pairs(setting, shape.rows, shape.width, shape.dtype)
    ids = grouping(setting, shape.rows, shape.groups)
    return found | timing.of_loss(setting, lambda: call(q, k, ids), (q, k), backward=gradients)


def _queue(peer: Peer, call: Any, shape: QueueShape, setting: Setting) -> dict[str, Any]:
    gradients = peer.gradients_on_cpu or not setting.tiny
    small = shape._replace(rows=min(shape.rows, SMALL), entries=min(shape.entries, SMALL))
    found: dict[str, Any] = oracles.errors(
        call,
        lambda a, b, c: oracles.queue(a, b, c, TEMPERATURE),
        queued(setting, small),
        gradients=gradients,
    )
    if _wrong(found):
        return {**found, "failed": "not correct"}
    q, k, entries = queued(setting, shape)
    return found | timing.of_loss(setting, lambda: call(q, k, entries), (q,), backward=gradients)


def _top1(call: Any, shape: SamplingShape, setting: Setting) -> dict[str, Any]:
    templates, patches = (torch.nn.functional.normalize(x, dim=-1) for x in patches_of(setting, shape))
    own = templates.expand(shape.batch, -1, -1)
    found = call(own[:1], patches[:1])[0]
    similarity = templates.double() @ patches[0].double().T
    behind = float((similarity.amax(1) - similarity.gather(1, found[:, None]).squeeze(1)).max())
    if behind > LOSS_ERROR:
        return {"failed": "not correct", "similarity_error": behind}
    return {"similarity_error": behind, timing.FORWARD: measure(setting, lambda: call(own, patches))}


def _wrong(found: dict[str, float]) -> bool:
    # A NaN is not smaller than anything.
    return not (found["loss_error"] <= LOSS_ERROR and found.get("gradient_error", 0.0) <= GRADIENT_ERROR)


if __name__ == "__main__":
    main()
