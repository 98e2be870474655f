"""How the ranks find each other at the start: a common store, the node of each, and a process group that is tried out."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from pscl_hpc.config import RuntimeConfig
from pscl_hpc.errors import JobError, UserError
from pscl_hpc.training.device import setup_device
from pscl_hpc.training.heartbeat import Heartbeat
from pscl_hpc.training.ranks import Place, Ranks, read_place

_NCCL_SLACK_S = 60.0
"""How much earlier the heartbeat names a lost rank than NCCL's own time-out kills the process without a message."""
_PROBE_VALUES = 1 << 18
"""Values of the first sum over the ranks, which tries the network: a megabyte."""
_store: Store | None = None
"""The connection to the store, which this process keeps for all its runs."""
_sessions = 0
"""Runs that this process has joined: each has keys of its own in the store."""


@contextlib.contextmanager
def join_ranks(runtime: RuntimeConfig) -> Iterator[Ranks]:
    """Join the other ranks that the environment describes, and leave them at the end.

    Raises:
        UserError: the environment is inconsistent, or the requested device is not available.
        JobError: not all ranks joined in time; nothing is trained.
    """
    place = read_place()
    device = setup_device(runtime, place.local_rank, place.local_world)
    if place.world == 1:
        yield Ranks(place, device)
        return
    try:
        store = _open_store(place, device, runtime)
        nodes, shared = _list_nodes(store, place)
    except (RuntimeError, ValueError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise JobError(
            f"rank {place.rank} on {place.node}: could not join the {place.world} ranks at {place.address}:"
            f"{place.port} ({lines[0]}); nothing was trained, see the logs of the other ranks"
        ) from error
    if shared:
        raise UserError(f"{shared}; start one rank per GPU")
    ranks = Ranks(place, device, nodes)
    # With a second connection: one that waits for an answer blocks all threads that share it.
    connection = store.clone()  # type: ignore[attr-defined]
    ranks.heartbeat = Heartbeat(
        connection, place.rank, nodes, runtime.collective_timeout_s, runtime.init_timeout_s
    )
    try:
        ranks.group = _make_group(store, place, device, runtime)
        ranks.heartbeat.start()
        with ranks.watch():
            ranks.barrier()
            yield ranks
            ranks.barrier()
    finally:
        ranks.heartbeat.stop()
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def _open_store(place: Place, device: torch.device, runtime: RuntimeConfig) -> Store:
    """The common store of the ranks, with an entry of this rank."""
    global _store, _sessions
    patience = timedelta(seconds=runtime.init_timeout_s)
    # torchrun may host the store itself; it then outlives the ranks.
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if _store is None:
        _store = TCPStore(
            place.address,
            place.port,
            place.world,
            is_master=place.rank == 0 and not hosted,
            timeout=patience,
            wait_for_workers=False,
        )
    _sessions += 1
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"pscl_hpc/{restart}/{_sessions}", _store)
    gpu = ""
    if device.type == "cuda":
        gpu = str(torch.cuda.get_device_properties(device).uuid)
    store.set(f"here/{place.rank}", json.dumps([place.node, gpu]))
    return store


def _list_nodes(store: Store, place: Place) -> tuple[tuple[str, ...], str]:
    """The node of each rank, and which ranks share a GPU, if any; waits for all ranks."""
    keys = [f"here/{rank}" for rank in range(place.world)]
    try:
        store.wait(keys)
    except RuntimeError:
        absent = [rank for rank, key in enumerate(keys) if not store.check([key])]
        shown = ", ".join(map(str, absent[:8])) + (" and others" if len(absent) > 8 else "")
        raise TimeoutError(f"rank {shown} did not join") from None
    nodes: list[str] = []
    users: dict[str, int] = {}
    for rank, text in enumerate(store.multi_get(keys)):
        node, gpu = json.loads(text)
        nodes.append(node)
        if gpu and users.setdefault(gpu, rank) != rank:
            return tuple(nodes), f"ranks {users[gpu]} and {rank} share a GPU on {node}"
    return tuple(nodes), ""


def _make_group(
    store: Store, place: Place, device: torch.device, runtime: RuntimeConfig
) -> dist.ProcessGroup:
    """The process group, with a longer time-out while it forms than in training."""
    backend, limit = "gloo", runtime.collective_timeout_s
    if device.type == "cuda":
        backend, limit = "cpu:gloo,cuda:nccl", limit + _NCCL_SLACK_S
    try:
        dist.init_process_group(
            backend,
            store=PrefixStore("group", store),
            rank=place.rank,
            world_size=place.world,
            timeout=timedelta(seconds=runtime.init_timeout_s),
        )
        group: dist.ProcessGroup = dist.new_group(timeout=timedelta(seconds=limit), backend=backend)
        # A megabyte, as the gradients of a small network: some faults of a network do not show in a few bytes.
        probe = torch.ones(_PROBE_VALUES, device=device)
        dist.all_reduce(probe, group=group)
    except RuntimeError as error:
        raise JobError(
            f"rank {place.rank} on {place.node}: the ranks cannot communicate over {backend} "
            f"({str(error).strip().splitlines()[0]}); nothing was trained"
        ) from error
    wrong = probe[probe != place.world]
    if len(wrong):
        raise JobError(
            f"rank {place.rank} on {place.node}: a sum over {place.world} ranks gave {float(wrong[0]):g} in "
            f"{len(wrong)} of {len(probe)} values; nothing was trained, exclude this node (sbatch: exclude)"
        )
    return group
