"""Heartbeats of all ranks, so that the others name a rank that died or hangs instead of waiting for it.

A thread of every rank writes a counter and the progress of its training into the common store of the ranks. Rank 0
reads all of them and posts a verdict when one stops; the others watch rank 0 and the verdict. Ages are measured on a
clock of the reader that stands still while the reader itself gets no time, so a busy or suspended machine is not taken
for a lost rank. After a verdict a process that is blocked in a collective operation, where Python cannot interrupt it, is
ended.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch.distributed import Store  # type: ignore[attr-defined]

from pscl_hpc.errors import EXIT_FAILED
from pscl_hpc.training.flight_recorder import write_recorded

NO_HEARTBEAT = "no heartbeat from"
"""Beginning of the verdict on a rank that did not report an error itself."""
_INTERVAL_S = 1.0
_FIRST_BEATS = 2
"""Number of beats in the first step: reading and computing."""
_GRACE_S = 10.0
"""How long the training may take to end by itself after a verdict."""


@dataclass
class _Rank:
    """State of a rank."""

    pulse: int = 0
    """Counts the heartbeats of its thread."""
    tick: int = 0
    """Counts the calls of :meth:`Heartbeat.beat`: the progress of its training."""
    step: int = 0
    doing: str = "starting"
    seen: float = 0.0
    """When its pulse last changed, on the reader's clock."""

    def text(self) -> str:
        """The entry in the store, which :meth:`Heartbeat._note` reads."""
        return f"{self.pulse} {self.tick} {self.step} {self.doing}"


class Heartbeat:
    """Start it when all ranks have joined; call :meth:`beat` at the same points of the training on all ranks.

    Args:
        store: The common store of the ranks; used by the threads only.
        rank: This rank.
        nodes: Node of each rank.
        timeout_s: How long a rank may go without heartbeat or progress.
        first_timeout_s: How long the first step may take, in which kernels are chosen and compiled.
    """

    def __init__(
        self, store: Store, rank: int, nodes: Sequence[str], timeout_s: float, first_timeout_s: float
    ) -> None:
        self.verdict = ""
        """Why the training cannot continue; empty while it can."""
        self._store = store
        self._rank = rank
        self._nodes = nodes
        self._timeout = timeout_s
        self._first_timeout = max(timeout_s, first_timeout_s)
        self._interval = min(_INTERVAL_S, timeout_s / 10)
        self._own = _Rank()
        self._peers = [_Rank() for _ in nodes]
        self._clock = self._contact = self._moved = 0.0
        self._lost = False
        self._alarm = False
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def start(self) -> None:
        """Post the first heartbeat and begin to watch."""
        self._store.set(self._key(self._rank), self._own.text())
        for work in (self._exchange, self._judge):
            threading.Thread(target=work, name=f"heartbeat{work.__name__}", daemon=True).start()

    def beat(self, step: int, doing: str) -> None:
        """Progress of the training: it is at ``step`` and now ``doing`` this. Takes no time."""
        own = self._own
        own.tick, own.step, own.doing = own.tick + 1, step, doing

    def stop(self) -> None:
        """End the threads."""
        self._stop.set()

    def fail(self, reason: str) -> bool:
        """Tell the others why this rank ends. False when one reported the same reason before."""
        text = f"{self._name(self._rank)} failed at step {self._own.step}: {reason}"
        try:
            first = self._store.compare_set("failed", "", text).decode()
        except Exception:
            return True
        # The store may end with this process: the others need a moment to read it.
        time.sleep(3 * self._interval)
        return first == text or not first.endswith(f": {reason}")

    def explain(self) -> str:
        """Which rank made an operation fail here; empty when all others are well. Takes seconds."""
        self._alarm = True
        end = self._clock + 10 * self._interval
        while not self.verdict and self._clock < end and not self._stop.is_set():
            time.sleep(self._interval / 10)
        if self._rank == 0 and self.verdict:
            time.sleep(3 * self._interval)
        return self.verdict

    def _exchange(self) -> None:
        """Write and read heartbeats. May block forever when the store died, which :meth:`_judge` notices."""
        while not self._stop.is_set():
            self._own.pulse += 1
            try:
                self._store.set(self._key(self._rank), self._own.text())
                watched = range(len(self._peers)) if self._rank == 0 else (0,)
                found = self._store.multi_get([self._key(rank) for rank in watched])
                for rank, text in zip(watched, found, strict=True):
                    self._note(self._peers[rank], text.decode())
                for key in ("failed", "verdict"):
                    if self._store.check([key]):
                        self._decide(self._store.get(key).decode())
            except Exception:
                self._lost = True
                return
            self._contact = self._clock
            self._stop.wait(self._interval)

    def _note(self, peer: _Rank, text: str) -> None:
        """Take over what a rank has written, and when it changed."""
        pulse, tick, step, doing = text.split(" ", 3)
        now = self._clock
        if int(pulse) != peer.pulse:
            peer.pulse, peer.seen = int(pulse), now
        if int(tick) != peer.tick:
            self._moved = now
        peer.tick, peer.step, peer.doing = int(tick), int(step), doing

    def _judge(self) -> None:
        """Never blocks. Ends the process when the training does not end after a verdict."""
        woke = time.monotonic()
        while not self._stop.wait(self._interval):
            woke, before = time.monotonic(), woke
            self._clock += min(woke - before, 2 * self._interval)
            if not self.verdict:
                self._decide(self._findings())
            elif not self._stop.wait(_GRACE_S):
                print(f"error: {self.verdict}", file=sys.stderr, flush=True)
                os._exit(EXIT_FAILED)

    def _findings(self) -> str:
        """Why the training cannot continue, as far as this rank sees; empty if it can."""
        now = self._clock
        # Once an operation has failed, a few missing heartbeats are enough.
        short = 4 * self._interval
        limit = short if self._alarm else self._timeout
        if self._lost or now - self._contact > limit:
            if self._rank == 0:
                return (
                    "the common store of the ranks does not answer: the process that started the ranks died"
                )
            return self._gone([0])
        watched = range(len(self._peers)) if self._rank == 0 else (0,)
        silent = [rank for rank in watched if rank != self._rank and now - self._peers[rank].seen > limit]
        if silent:
            return self._gone(silent)
        # Judged by the beats that were read, as the time of the last one is: this rank's own may be newer.
        first_step = min(peer.tick for peer in self._peers) <= _FIRST_BEATS
        patience = self._first_timeout if first_step else self._timeout
        if self._rank == 0 and now - self._moved > patience:
            silent = [rank for rank, peer in enumerate(self._peers) if rank and now - peer.seen > short]
            return self._gone(silent) if silent else self._hung(patience)
        return ""

    def _gone(self, ranks: Sequence[int]) -> str:
        who = "; ".join(f"{self._name(rank)} (its last step: {self._peers[rank].step})" for rank in ranks)
        return f"{NO_HEARTBEAT} {who}: it died, was stopped, or lost the network; see its log"

    def _hung(self, patience: float) -> str:
        behind = min(peer.tick for peer in self._peers)
        slow = [rank for rank, peer in enumerate(self._peers) if peer.tick == behind]
        if len(slow) == len(self._peers):
            return (
                f"no rank made progress for {patience:g} s after step {self._peers[0].step}; see their logs"
            )
        who = "; ".join(f"{self._name(r)} ({self._peers[r].doing}, step {self._peers[r].step})" for r in slow)
        return f"the ranks have waited {patience:g} s for {who}; see its log"

    def _decide(self, text: str) -> None:
        with self._lock:
            if not text or self.verdict:
                return
            self.verdict = text
        # In a thread of its own, because it may wait for the operation that hangs.
        threading.Thread(target=write_recorded, args=(self._rank,), daemon=True).start()
        if self._rank == 0 and not self._lost:
            try:
                self._store.compare_set("verdict", "", text)
            except Exception:
                self._lost = True

    def _name(self, rank: int) -> str:
        return f"rank {rank} on {self._nodes[rank]}"

    @staticmethod
    def _key(rank: int) -> str:
        return f"beat/{rank}"
