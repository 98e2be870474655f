"""How the starts of a job ended: small files beside its logs, written by tasks, batch script and local controller.

``JOB.RESTART.end`` has a word in its first line, the reason in its second and, for a failure of a node, its name in the
third. ``JOB.failures`` has a line for each start that failed: its number, exit code, newest checkpoint then (or ``-``)
and the node whose rank died (or ``-``). ``JOB.run`` holds the path of the run folder, so that the batch script finds the
checkpoints.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from pscl_hpc.files import write_text

STOPPED, REFUSED, REQUEUE, FULL = "stopped", "refused", "requeue", "full"
"""Words of an end file: stopped on request; a retry would fail again; to be started again; the disk is full."""
BAD_NODE = "node"
"""Word of an end file: a failure of the node that its third line names."""
CANCELLED = "cancelled"
"""The recorded reason of a run that was stopped on request."""
EXIT_FULL = 74
"""Exit code of a job that could not write into its folder; the code stays in Slurm's records."""
FULL_REASON = (
    "the run folder could not be written, because its disk is full or over quota; free space there, then restart the "
    "run with 'pscl-hpc jobs requeue'"
)
PROBE_BYTES = 65536
"""What has to fit into the folders before a failed job is started again."""
_NONE = "-"


@dataclass(frozen=True)
class Failure:
    """A start of a job that failed."""

    restart: int
    code: int
    checkpoint: str = _NONE
    """Newest checkpoint of the run when it failed."""
    node: str = _NONE
    """Node of the rank that died; ``-`` if it is not known or the rank ended by itself."""

    def text(self) -> str:
        """In words."""
        rank = "a rank" if self.node == _NONE else f"a rank on {self.node}"
        killed = f", killed by signal {self.code - 128}" if self.code > 128 else ""
        return f"{rank} ended with exit code {self.code}{killed}"


def write_end(files: Path, job: str, restart: int, word: str, reason: str = "", node: str = "") -> None:
    """Write how a start of a job ended; a disk that is full leaves no file, and the batch script notices that."""
    line = " ".join(reason.split())
    with contextlib.suppress(OSError):
        write_text(files / f"{job}.{restart}.end", f"{word}\n{line}\n" + (f"{node}\n" if node else ""))


def read_end(files: Path, job: str, restart: int) -> tuple[str, str]:
    """Word and reason of a start's end; both empty without a file."""
    try:
        lines = (files / f"{job}.{restart}.end").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return "", ""
    return (lines[0] if lines else ""), (lines[1] if len(lines) > 1 else "")


def last_end(files: Path, job: str) -> tuple[int, str, str]:
    """Restart, word and reason of the newest end file of a job; -1 and empty without one."""
    numbers = [
        int(path.name.split(".")[-2])
        for path in files.glob(f"{job}.*.end")
        if path.name.split(".")[-2].isdigit()
    ]
    newest = max(numbers, default=-1)
    return (newest, *read_end(files, job, newest))


def read_failures(files: Path, job: str) -> list[Failure]:
    """The failed starts of a job, in order."""
    try:
        lines = (files / f"{job}.failures").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
    words = [line.split() for line in lines]
    return [
        Failure(int(each[0]), int(each[1]), *each[2:])
        for each in words
        if len(each) == 4 and each[0].isdigit() and each[1].isdigit()
    ]


def add_failure(files: Path, job: str, failure: Failure) -> None:
    """Record a failed start, if the folder has space for more than that.

    Raises:
        OSError: it has not.
    """
    probe = files / f".{job}.probe"
    try:
        probe.write_bytes(b"\0" * PROBE_BYTES)
    finally:
        probe.unlink(missing_ok=True)
    with (files / f"{job}.failures").open("a", encoding="utf-8") as noted:
        noted.write(f"{failure.restart} {failure.code} {failure.checkpoint} {failure.node}\n")


def without_progress(failures: list[Failure]) -> int:
    """How many of the last failures had the same newest checkpoint: since the last progress."""
    return sum(failure.checkpoint == failures[-1].checkpoint for failure in failures) if failures else 0


def used_up(count: int, retries: int, failure: Failure) -> str:
    """Why a job that failed this often without progress is not started again."""
    return f"{failure.text()}; {count} starts failed without a new checkpoint, and retries is {retries}"


def note_run(files: Path, job: str, run: Path) -> None:
    """Tell the batch script which run the job works on."""
    write_text(files / f"{job}.run", f"{run}\n")


def newest_checkpoint(files: Path, job: str) -> str:
    """Step of the newest checkpoint of a job's run, ``-`` without one."""
    try:
        run = Path((files / f"{job}.run").read_text(encoding="utf-8").rstrip("\n"))
    except OSError:
        return _NONE
    steps = [path.stem.removeprefix("step-") for path in (run / "checkpoints").glob("step-*.pt")]
    return str(max((int(step) for step in steps if step.isdigit()), default=_NONE))
