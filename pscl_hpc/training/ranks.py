"""The processes that train together, described by torchrun's environment variables.

RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT; PSCL_NODE may name the node. Without them,
or with a world size of 1, the process trains alone.
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
from pscl_hpc.training.heartbeat import NO_HEARTBEAT, Heartbeat
from pscl_hpc.training.stopping import StopRequested

_NCCL_SLACK_S = 60.0
"""How much earlier the heartbeat names a lost rank than NCCL's own time-out kills the process without a message."""
_PROBE_VALUES = 1 << 18
"""Values of the first sum over the ranks, which tries the network: a megabyte."""
_store: Store | None = None
_sessions = 0


@dataclass(frozen=True)
class Place:
    """Position of a process among the ranks."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    address: str = ""
    port: int = 0
    node: str = ""

    @property
    def first(self) -> bool:
        """Whether this is rank 0, the only one that writes and reports."""
        return self.rank == 0


def read_place(environment: Mapping[str, str] = os.environ) -> Place:
    """The position of this process according to the environment.

    Raises:
        UserError: variables are missing or contradict each other.
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
        raise UserError(
            f"{node}: WORLD_SIZE is {place.world}, but MASTER_ADDR is empty; set it to the node of rank 0"
        )
    if place.rank >= place.world or place.local_rank >= place.local_world:
        raise UserError(
            f"{node}: RANK {place.rank} of {place.world} or LOCAL_RANK {place.local_rank} of {place.local_world} "
            "is out of range; start the ranks with torchrun or pscl-hpc submit"
        )
    return place


class Ranks:
    """Collective operations of the ranks. For a process alone they return at once."""

    def __init__(self, place: Place, device: torch.device, nodes: tuple[str, ...] = ()) -> None:
        self.place = place
        self.rank = place.rank
        self.world = place.world
        self.device = device
        self.nodes = nodes or (place.node,)
        """Name of each rank's node."""
        self.group: dist.ProcessGroup | None = None
        """Process group for tensors on the CPU and on the device. None for one process."""
        self.heartbeat: Heartbeat | None = None
        self._ended = False

    @classmethod
    def alone(cls, device: torch.device) -> Ranks:
        """One process."""
        return cls(Place(node=node_name()), device)

    @property
    def first(self) -> bool:
        """Whether this is rank 0, the only one that writes and reports."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Print a line on standard error, with the rank's name when there are several."""
        name = f"[rank {self.rank} on {self.place.node}] " if self.world > 1 else ""
        print(name + text, file=sys.stderr, flush=True)

    def beat(self, step: int, doing: str) -> None:
        """Report progress to the other ranks; all ranks make the same calls.

        Raises:
            JobError: another rank was lost or failed.
        """
        if self.heartbeat is not None:
            self.heartbeat.beat(step, doing)
            if self.heartbeat.verdict:
                raise JobError(self.heartbeat.verdict)

    def from_first(self, make: Callable[[], Any]) -> Any:
        """A value computed by rank 0, on every rank. When rank 0 fails, the others exit without a message."""
        if self.group is None:
            return make()
        error: UserError | JobError | None = None
        answer: dict[str, Any] = {}
        if self.first:
            try:
                answer = {"value": make()}
            except (UserError, JobError) as problem:
                error, answer = problem, {"code": exit_code(problem)}
        answers = [answer]
        dist.broadcast_object_list(answers, 0, group=self.group)
        if "value" in answers[0]:
            return answers[0]["value"]
        self._ended = True
        if error is not None:
            raise error
        raise SystemExit(answers[0]["code"])

    def agree_to_stop(self, reason: str | None) -> str | None:
        """A rank's reason to stop, the same on every rank; all ranks call it at the same step."""
        if self.group is None:
            return reason
        requests = torch.tensor([int(reason is not None)])
        dist.all_reduce(requests, group=self.group)
        return next(filter(None, self._gather(reason))) if int(requests) else None

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Mean of each value over the ranks that have it; NaN counts as not having it."""
        if self.group is None:
            return values
        gathered = self._gather(values)
        means: dict[str, float] = {}
        for key in dict.fromkeys(key for each in gathered for key in each):
            found = [each[key] for each in gathered if not math.isnan(each.get(key, math.nan))]
            # The mean of equal values is exactly that value.
            same = len(set(found)) == 1
            means[key] = math.nan if not found else found[0] if same else sum(found) / len(found)
        return means

    def _gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order."""
        values = [None] * self.world
        dist.all_gather_object(values, value, group=self.group)
        return values

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.group is not None:
            dist.all_reduce(torch.zeros(1), group=self.group)

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Around work of all ranks: reports an error of this rank to the others, and names the rank of another error.

        Raises:
            JobError: a rank died, hangs or failed; the message names it.
            SystemExit: another rank reports the error; the code is that of the error.
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
        verdict = heartbeat.verdict if isinstance(error, JobError) else ""
        if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError):
            # A failed collective operation, perhaps because another rank ended.
            verdict = heartbeat.explain()
        if verdict:
            # Rank 0 reports it, unless it is the lost one.
            if not self.first and not verdict.startswith(f"{NO_HEARTBEAT} rank 0 "):
                raise SystemExit(EXIT_FAILED) from error
            raise JobError(verdict) from error
        expected = isinstance(error, UserError | JobError)
        lines = str(error).strip().splitlines() or ["no message"]
        only_here = heartbeat.fail(lines[0] if expected else f"{type(error).__name__}: {lines[0]}")
        if not self.first and not only_here:
            raise SystemExit(exit_code(error)) from error
        raise error


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


def exit_code(error: BaseException) -> int:
    """The console command's exit code for an error."""
    return EXIT_INPUT if isinstance(error, UserError) else EXIT_FAILED
