"""The processes that train together, as torchrun describes them in the environment.

RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT; PSCL_NODE may name the node. Without them,
or with a world of 1, nothing is distributed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from pscl_hpc.config import RuntimeConfig
from pscl_hpc.errors import EXIT_FAILED, EXIT_INPUT, JobError, UserError
from pscl_hpc.runs import node_name
from pscl_hpc.training.device import setup_device
from pscl_hpc.training.heartbeat import SILENCE, Heartbeat
from pscl_hpc.training.interruption import StopRequested

_NCCL_SLACK_S = 60.0
"""NCCL's own time-out kills the process without a word; the heartbeat's verdict comes this much earlier."""
_store: Store | None = None
_sessions = 0


@dataclass(frozen=True)
class Place:
    """One process's place among the ranks."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    address: str = ""
    port: int = 0
    node: str = ""

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which alone writes and reports."""
        return self.rank == 0


def read_place(environment: Mapping[str, str] = os.environ) -> Place:
    """The place that the environment gives this process.

    Raises:
        UserError: when variables are missing or contradict each other.
    """
    node = environment.get("PSCL_NODE") or node_name()
    if environment.get("WORLD_SIZE", "1") == "1":
        return Place(node=node)

    def value(name: str) -> int:
        text = environment.get(name, "")
        if not text.isdigit():
            raise UserError(
                f"{node}: WORLD_SIZE is {environment['WORLD_SIZE']}, but {name} is '{text}'; start the ranks "
                "with torchrun or pscl-hpc submit, or unset WORLD_SIZE"
            )
        return int(text)

    place = Place(
        value("RANK"),
        value("WORLD_SIZE"),
        value("LOCAL_RANK"),
        value("LOCAL_WORLD_SIZE"),
        environment.get("MASTER_ADDR", ""),
        value("MASTER_PORT"),
        node,
    )
    if not place.address:
        raise UserError(f"{node}: WORLD_SIZE is {place.world}, but MASTER_ADDR is empty; name rank 0's node")
    if place.rank >= place.world or place.local_rank >= place.local_world:
        raise UserError(
            f"{node}: RANK {place.rank} of {place.world} or LOCAL_RANK {place.local_rank} of {place.local_world} "
            "is out of range; start the ranks with torchrun or pscl-hpc submit"
        )
    return place


class Ranks:
    """What the ranks do together. With one process everything is immediate."""

    def __init__(self, place: Place, device: torch.device, nodes: tuple[str, ...] = ()) -> None:
        self.place = place
        self.rank = place.rank
        self.world = place.world
        self.device = device
        self.nodes = nodes or (place.node,)
        """Name of each rank's node."""
        self.group: dist.ProcessGroup | None = None
        """For training; takes tensors of the CPU and of the device. None for one process."""
        self.heartbeat: Heartbeat | None = None
        self._store: Store | None = None
        self._ended = False

    @classmethod
    def alone(cls, device: torch.device) -> Ranks:
        """One process."""
        return cls(Place(node=node_name()), device)

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which alone writes and reports."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """A line on standard error, with the rank's name where there are several."""
        name = f"[rank {self.rank} on {self.place.node}] " if self.world > 1 else ""
        print(name + text, file=sys.stderr, flush=True)

    def beat(self, step: int, doing: str) -> None:
        """Show the others how far this rank is; the same calls on all ranks.

        Raises:
            JobError: when the others cannot go on.
        """
        if self.heartbeat is not None:
            self.heartbeat.beat(step, doing)
            if self.heartbeat.verdict:
                raise JobError(self.heartbeat.verdict)

    def from_first(self, make: Callable[[], Any]) -> Any:
        """A plain (JSON) value that rank 0 makes, on every rank. When rank 0 fails, the others end without a word."""
        if self.group is None:
            return make()
        error: UserError | JobError | None = None
        answer: dict[str, Any] = {}
        if self.first:
            try:
                answer = {"value": make()}
            except (UserError, JobError) as problem:
                error, answer = problem, {"code": exit_code(problem)}
        answer = json.loads(self.broadcast(json.dumps(answer).encode()) or b"")
        if "value" in answer:
            return answer["value"]
        self._ended = True
        if error is not None:
            raise error
        raise SystemExit(answer["code"])

    def broadcast(self, data: bytes | None) -> bytes | None:
        """Rank 0's bytes, or None, on every rank; ``data`` of the others is ignored."""
        if self.group is None:
            return data
        size = torch.tensor([-1 if data is None else len(data)])
        dist.broadcast(size, 0, group=self.group)
        if int(size) <= 0:
            return None if int(size) < 0 else b""
        buffer = torch.empty(int(size), dtype=torch.uint8)
        if self.first and data is not None:
            buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        dist.broadcast(buffer, 0, group=self.group)
        return buffer.numpy().tobytes()

    def agree_to_stop(self, reason: str | None) -> str | None:
        """A reason to stop that any rank has, the same on every rank; to be called by all at the same step."""
        if self.group is None:
            return reason
        assert self._store is not None
        if reason is not None:
            self._store.set("stop", reason)
        asked = torch.tensor([int(reason is not None)])
        dist.all_reduce(asked, dist.ReduceOp.MAX, group=self.group)
        return self._store.get("stop").decode() if int(asked) else None

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Mean of each value over the ranks that have it; NaN is the same as not having it."""
        if self.group is None:
            return values
        parts = [json.loads(data) for data in self._gather(json.dumps(values).encode())]
        means: dict[str, float] = {}
        for key in dict.fromkeys(key for part in parts for key in part):
            found = [part[key] for part in parts if not math.isnan(part.get(key, math.nan))]
            # Where all ranks say the same, their mean is exactly that.
            same = len(set(found)) == 1
            means[key] = math.nan if not found else found[0] if same else sum(found) / len(found)
        return means

    def _gather(self, data: bytes) -> list[bytes]:
        """Every rank's bytes, in rank order."""
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        dist.all_gather(sizes, torch.tensor([len(data)]), group=self.group)
        longest = max(int(size) for size in sizes)
        own = torch.frombuffer(bytearray(data.ljust(longest)), dtype=torch.uint8)
        parts = [torch.empty_like(own) for _ in sizes]
        dist.all_gather(parts, own, group=self.group)
        return [part.numpy().tobytes()[: int(size)] for part, size in zip(parts, sizes, strict=True)]

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.group is not None:
            dist.all_reduce(torch.zeros(1), group=self.group)

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Around work that all ranks do: an error here is told to the others, one of theirs is named here.

        Raises:
            JobError: naming the rank that died, hangs or failed.
            SystemExit: on ranks whose error another rank reports; its code is that of the error.
        """
        try:
            yield
        except (StopRequested, SystemExit, GeneratorExit):
            raise
        except BaseException as error:
            if self.heartbeat is None or self._ended:
                raise
            self._ended = True
            self._end(error, self.heartbeat)

    def _end(self, error: BaseException, heartbeat: Heartbeat) -> NoReturn:
        told = heartbeat.verdict if isinstance(error, JobError) else ""
        if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError):
            told = heartbeat.explain()
        if told:
            # Rank 0 says it, unless it cannot.
            if not self.first and not told.startswith(f"{SILENCE} rank 0 "):
                raise SystemExit(EXIT_FAILED) from error
            raise JobError(told) from error
        plain = isinstance(error, UserError | JobError)
        lines = str(error).strip().splitlines() or ["no message"]
        said = heartbeat.fail(lines[0] if plain else f"{type(error).__name__}: {lines[0]}")
        if not self.first and not said:
            raise SystemExit(exit_code(error)) from error
        raise error


@contextlib.contextmanager
def join_ranks(runtime: RuntimeConfig) -> Iterator[Ranks]:
    """Meet the other ranks that the environment speaks of, and part from them at the end.

    Raises:
        UserError: when the environment or the device is not what was asked for.
        JobError: when not all ranks come; then nothing is trained.
    """
    place = read_place()
    device = setup_device(runtime, place.local_rank)
    if place.world == 1:
        yield Ranks(place, device)
        return
    try:
        store = _meet(place, device, runtime)
        nodes, doubled = _roll_call(store, place)
    except (RuntimeError, ValueError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise JobError(
            f"rank {place.rank} on {place.node}: could not join the {place.world} ranks at {place.address}:"
            f"{place.port} ({lines[0]}); nothing was trained, see the logs of the other ranks"
        ) from error
    if doubled:
        raise UserError(f"{doubled}; start one rank per GPU")
    ranks = Ranks(place, device, nodes)
    ranks._store = store
    ranks.heartbeat = Heartbeat(
        _connect_again(store), place.rank, nodes, runtime.collective_timeout_s, runtime.init_timeout_s
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


def _meet(place: Place, device: torch.device, runtime: RuntimeConfig) -> Store:
    """The ranks' common store, in which this rank has said who it is."""
    global _store, _sessions
    patience = timedelta(seconds=runtime.init_timeout_s)
    # torchrun keeps the store itself, where it outlives the ranks.
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if _store is None:
        _store = TCPStore(
            place.address,
            place.port,
            place.world,
            is_master=place.rank == 0 and not kept,
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


def _connect_again(store: Store) -> Store:
    """A second connection: one that waits for an answer blocks all threads that share it."""
    twin: Store = store.clone()  # type: ignore[attr-defined]
    return twin


def _roll_call(store: Store, place: Place) -> tuple[tuple[str, ...], str]:
    """Each rank's node, and a complaint about ranks that share a GPU; waits for all ranks."""
    keys = [f"here/{rank}" for rank in range(place.world)]
    try:
        store.wait(keys)
    except RuntimeError:
        absent = [rank for rank, key in enumerate(keys) if not store.check([key])]
        shown = ", ".join(map(str, absent[:8])) + (" and others" if len(absent) > 8 else "")
        raise TimeoutError(f"rank {shown} did not come") from None
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
    """A group that is patient while it forms and impatient in training."""
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
        probe = torch.ones(1, device=device)
        dist.all_reduce(probe, group=group)
    except RuntimeError as error:
        raise JobError(
            f"rank {place.rank} on {place.node}: the ranks cannot talk to each other over {backend} "
            f"({str(error).strip().splitlines()[0]}); nothing was trained"
        ) from error
    if not math.isclose(float(probe), place.world):
        raise JobError(
            f"rank {place.rank} on {place.node}: a sum over {place.world} ranks gave {float(probe):g}"
        )
    return group


def exit_code(error: BaseException) -> int:
    """The console command's exit code for an error."""
    return EXIT_INPUT if isinstance(error, UserError) else EXIT_FAILED
