"""The order of jobs that need each other, with failures anywhere."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pscl_hpc.errors import UserError
from pscl_hpc.study import schedule
from pscl_hpc.study.schedule import Outcome, run_jobs


@dataclasses.dataclass(frozen=True)
class Task:
    """What the schedule looks at in a job."""

    key: str
    needs: str = ""


class Watched:
    """Ends jobs some polls after their start; checks that nothing starts too early or too much."""

    def __init__(self, fates: dict[str, str], delays: dict[str, int], limit: int, done: set[str]) -> None:
        self.fates, self.delays, self.limit, self.done = fates, delays, limit, set(done)
        self.running: dict[str, int] = {}
        self.log: list[str] = []
        self.told: dict[str, Outcome] = {}
        self.stopped = False

    def start(self, job: Any) -> None:
        assert not job.needs or job.needs in self.done
        assert job.key not in self.log
        self.log.append(job.key)
        if self.fates[job.key] == "refused":
            raise UserError("no place for it")
        self.running[job.key] = self.delays[job.key]
        assert len(self.running) <= self.limit

    def poll(self) -> dict[str, Outcome]:
        ended = {}
        for key in list(self.running):
            self.running[key] -= 1
            if self.running[key] < 0:
                del self.running[key]
                if self.fates[key] == "done":
                    self.done.add(key)
                    ended[key] = Outcome("done")
                else:
                    ended[key] = Outcome("failed", "it broke")
        return ended

    def stop(self) -> None:
        self.stopped = True

    def started(self, job: Any) -> None:
        pass

    def ended(self, job: Any, outcome: Outcome) -> None:
        assert job.key not in self.told
        self.told[job.key] = outcome

    def tick(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "POLL_S", 0)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_every_job_is_settled_once_and_failures_stay_where_they_are(data: st.DataObject) -> None:
    roots = data.draw(st.integers(0, 4))
    leaves = data.draw(st.lists(st.integers(-1, roots - 1), max_size=10))
    jobs = [Task(f"r{i}") for i in range(roots)]
    jobs += [Task(f"l{i}", f"r{need}" if need >= 0 else "") for i, need in enumerate(leaves)]
    done = {f"r{i}" for i in range(roots) if data.draw(st.booleans())}
    todo = [job for job in jobs if job.key not in done]
    fates = {job.key: data.draw(st.sampled_from(["done", "done", "failed", "refused"])) for job in todo}
    delays = {job.key: data.draw(st.integers(0, 3)) for job in todo}
    limit = data.draw(st.integers(1, 4))
    watched = Watched(fates, delays, limit, done)
    outcomes = run_jobs(todo, done, watched, limit, watched)  # type: ignore[arg-type]
    assert outcomes == watched.told
    assert outcomes.keys() == {job.key for job in todo}
    for job in todo:
        blocked = job.needs and job.needs not in done and fates[job.needs] != "done"
        if blocked:
            assert outcomes[job.key].state == "skipped"
            assert outcomes[job.needs].reason in outcomes[job.key].reason
            assert job.key not in watched.log
        else:
            assert outcomes[job.key].state == ("done" if fates[job.key] == "done" else "failed")


def test_an_interruption_stops_what_runs() -> None:
    class Interrupted(Watched):
        def tick(self) -> None:
            raise KeyboardInterrupt

    watched = Interrupted({"a": "done"}, {"a": 5}, 1, set())
    with pytest.raises(KeyboardInterrupt):
        run_jobs([Task("a")], [], watched, 1, watched)  # type: ignore[list-item]
    assert watched.stopped


def test_a_job_that_needs_what_nobody_does_is_a_mistake_of_the_programmer() -> None:
    watched = Watched({"a": "done"}, {"a": 0}, 1, set())
    with pytest.raises(ValueError, match="needs"):
        run_jobs([Task("a", "b")], [], watched, 1, watched)  # type: ignore[list-item]
