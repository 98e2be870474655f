"""The processes that train together, described by torchrun's environment variables.

RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT; PSCL_NODE may name the node. Without them,
or with a world size of 1, the process trains alone.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from pscl_hpc.errors import EXIT_FAILED, EXIT_INPUT, JobError, UserError
from pscl_hpc.runs import node_name
from pscl_hpc.training.heartbeat import NO_HEARTBEAT, Heartbeat
from pscl_hpc.training.stopping import StopRequested


@dataclass(frozen=True)
class Place:
    """Position of a process among the ranks."""

    rank: int = 0
    world: int = 1
    """Number of ranks."""
    local_rank: int = 0
    """Number among the ranks of the same node."""
    local_world: int = 1
    """Number of ranks on this node."""
    address: str = ""
    """Of the store of the ranks: the node of rank 0."""
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


def exit_code(error: BaseException) -> int:
    """The console command's exit code for an error."""
    return EXIT_INPUT if isinstance(error, UserError) else EXIT_FAILED
