"""A test cluster for the tests of this folder, which are skipped if it cannot be started."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pscl_hpc.errors import UserError
from pscl_hpc.launch import stage_job
from pscl_hpc.launch.control import follow_log, ranks_of_node
from pscl_hpc.launch.profiles import Profile
from pscl_hpc.launch.records import job_records
from pscl_hpc.launch.schedulers import SCHEDULERS, wait_for_end
from pscl_hpc.launch.status import find_runs, run_status
from pscl_hpc.launch.submission import Submission, submit
from pscl_hpc.pretraining.config import PretrainConfig
from pscl_hpc.runs import RunFolder
from tests.helpers import small_archive, small_config

SCRIPT = Path(__file__).parents[2] / "slurm" / "test-cluster.sh"
STEPS, GATE = 12, 5
WAIT_S = 600
"""A generous limit: importing torch alone can take a minute on a busy machine."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker("slurm")
            item.add_marker(pytest.mark.timeout(3 * WAIT_S))


class Cluster:
    """Slurm on three nodes, n1 to n3."""

    def __init__(self, folder: Path, number: int) -> None:
        self.environment = {
            **os.environ,
            "CLUSTER_DIR": str(folder),
            "CLUSTER_PORT": str(17817 + 10 * number),
            "CLUSTER_NET": f"198.18.{91 + number}",
            "CLUSTER_SILENCE_S": "6",
        }

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run(
            [str(SCRIPT), *arguments], env=self.environment, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def slurm(*command: str) -> str:
    """The output of a command."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout.strip()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    missing = subprocess.run([str(SCRIPT), "check"], capture_output=True, text=True)
    if missing.returncode:
        pytest.skip(missing.stderr.strip())
    # Each process of the test run has its own.
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    cluster = Cluster(Path(f"/tmp/pscl-slurm-{os.getpid()}"), number)
    try:
        cluster("up", "3")
        yield cluster
    finally:
        cluster("down")


@pytest.fixture
def place(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with an archive and a name that needs quoting; pretraining can be held at a step."""
    folder = tmp_path / 'it\'s a "place"'
    folder.mkdir()
    small_archive(folder / "a.h5", images=10)
    here = str(Path(__file__).parent)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SLURM_CONF", f"{cluster.environment['CLUSTER_DIR']}/etc/slurm.conf")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", f"{here}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setitem(stage_job.STAGES, "pretrain", "gated_stage:pretrain")
    yield folder
    for run in find_runs(folder):
        for record in job_records(run):
            SCHEDULERS[record.cluster].kill(record)
            wait_for_end(record, 30)


def make_config(run: str, **changes: object) -> PretrainConfig:
    """A pretraining of STEPS steps that needs at least one image for each of 4 ranks."""
    keys = {
        "batch_size": 8,
        "method": {"name": "simclr"},
        "schedule": {"steps": STEPS},
        "checkpoint": {"every_steps": 4},
        "runtime": {"threads": 1},
        **changes,
    }
    return small_config(Path("a.h5"), Path(run), **keys)


def start(run: str, profile: Profile, *, cluster: str = "slurm", gate: bool = True) -> Submission:
    """Submit a run; with ``gate`` it waits after step GATE."""
    config = make_config(run)
    if gate:
        RunFolder.reserve(config)
        (Path(run) / "gate").write_text(str(GATE))
    return submit(config, cluster=cluster, profile=profile)


def eventually(what: str, holds: Callable[[], bool], seconds: float = WAIT_S) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.3)


def ranks_on(done: Submission, node: str) -> list[int]:
    """The ranks that last started on a node."""
    try:
        return ranks_of_node(done.run, node)
    except UserError:
        return []


def at_gate(done: Submission, restarts: int = 0) -> None:
    """Wait until a run has reached its gate after this many restarts. A run that is asked to stop at its gate does one
    more step."""

    def there() -> bool:
        found = run_status(done.run)
        assert found.state != "failed", found
        if (found.state, found.restarts) != ("running", restarts) or found.step < GATE:
            return False
        return "first_step" in RunFolder.load(done.run).attempts[-1]

    eventually(f"{done.run} at its gate after {restarts} restarts", there)


def ended(done: Submission) -> str:
    """Wait for the end of a job; its state in Slurm with the exit code."""
    eventually(f"{done.run} ended", lambda: SCHEDULERS["slurm"].state(done.job).phase == "ended")

    def state() -> str:
        return slurm("sacct", "-X", "-n", "-P", "-j", done.job.job, "-o", "State,ExitCode")

    # The accounting is a little behind.
    eventually(
        f"{done.run} ended for sacct",
        lambda: not (state() or "PENDING").startswith(("RUNNING", "PENDING", "REQUEUED")),
    )
    return state()


def log_of(done: Submission) -> str:
    return "".join(follow_log(done.run, follow=False))


def finish(done: Submission) -> str:
    """Open the gate, wait for the end, and give the SHA-256 of the weights."""
    (done.run / "gate").unlink(missing_ok=True)
    eventually(f"{done.run} done", lambda: run_status(done.run).state in ("done", "failed", "lost"))
    found = run_status(done.run)
    assert (found.state, found.step) == ("done", STEPS), found
    assert [line["step"] for line in RunFolder.load(done.run).metrics()] == list(range(1, STEPS + 1))
    return hashlib.sha256((done.run / "trunk.safetensors").read_bytes()).hexdigest()


def ends(done: Submission) -> list[str]:
    """Why each attempt but the last ended."""
    return [attempt["ended"] for attempt in RunFolder.load(done.run).attempts[:-1]]


def node_of(done: Submission, rank: int) -> str:
    """The node on which a rank last started."""
    (node,) = (node for node in ("n1", "n2", "n3") if rank in ranks_on(done, node))
    return node


def first_steps(done: Submission) -> list[int]:
    """The step from which each attempt resumed."""
    return [attempt["first_step"] for attempt in RunFolder.load(done.run).attempts]


@pytest.fixture(scope="session")
def undisturbed() -> Callable[[int], str]:
    """The weights of an undisturbed run on this machine, without Slurm, by number of ranks."""
    known: dict[int, str] = {}

    def weights(ranks: int) -> str:
        if ranks not in known:
            profile = Profile(tasks_per_node=ranks)
            known[ranks] = finish(start(f"undisturbed-{ranks}", profile, cluster="local", gate=False))
        return known[ranks]

    return weights
