"""The batch script of a Slurm job: what runs before the tasks, how they are started, and what happens when they end.

The script runs on the job's first node, outside any container, and outlives the tasks. Slurm itself requeues a job that
it preempted or whose node went down, but marks a job FAILED when one of its tasks fails; then the batch script requeues
it.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from pscl_hpc.launch.profiles import Container, Profile

STOPPED, REFUSED, REQUEUE = "stopped", "refused", "requeue"
"""Content of a task's status file: stopped on request; wrong input, do not retry; to be started again."""
_END = """\
tasks=$!
shown() {{ scontrol show job --oneliner "$SLURM_JOB_ID" 2> /dev/null; }}
again() {{ scontrol requeue "$SLURM_JOB_ID" && sleep 600; exit "$code"; }}
# SIGTERM interrupts `wait`. The tasks may then use the time that Slurm leaves them. At the time limit the job is
# requeued even if they could not save.
while wait "$tasks"; code=$?; kill -0 "$tasks" 2> /dev/null; do
    case $(shown) in *Reason=TimeLimit*) break ;; esac
done
[ "$code" != 0 ] || exit 0
# A task that ends on purpose writes a status file; any other non-zero end is a failure.
restart=${{SLURM_RESTART_COUNT:-0}}
job=$SLURM_JOB_ID
[ -z "$SLURM_ARRAY_JOB_ID" ] || job=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID
case $(cat {files}/"$job.$restart.end" 2> /dev/null) in
{stopped}) scancel "$SLURM_JOB_ID" && sleep 600; exit "$code" ;;
{refused}) exit 2 ;;
{requeue}) again ;;
esac
case $(shown) in
*JobState=RUNNING* | *Reason=TimeLimit*) ;;
*) exit "$code" ;; # Slurm is ending the job: cancelled, requeued, or a node went down.
esac
echo "$restart $code" >> {files}/"$job.failures"
[ "$(wc -l < {files}/"$job.failures")" -gt {retries} ] || again
exit "$code\""""


def start_lines(profile: Profile) -> list[str]:
    """Shell lines before the tasks start."""
    return [
        # Since Slurm 22.05 srun reads the number of cores from this variable only.
        'export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"',
        'export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$SRUN_CPUS_PER_TASK}"',
        # Without a trap, the SIGTERM with which Slurm ends a job would kill the shell before it can decide anything.
        "trap : TERM",
        *(f"export {name}={shlex.quote(value)}" for name, value in profile.environment.items()),
        *profile.setup,
    ]


def end_lines(files: Path, retries: int) -> list[str]:
    """Shell lines after the tasks have started; ``files`` is the folder of the job's files."""
    text = _END.format(
        files=shlex.quote(str(files)), retries=retries, stopped=STOPPED, refused=REFUSED, requeue=REQUEUE
    )
    return text.splitlines()


def srun_options(container: Container | None) -> list[str]:
    """Options of srun."""
    options = ["--kill-on-bad-exit=1"]
    if container is not None and container.how == "pyxis":
        options.append(f"--container-image={container.image}")
        if container.mounts:
            options.append(f"--container-mounts={','.join(container.mounts)}")
    return options


def python_command(profile: Profile) -> str:
    """The shell command that starts Python in a task."""
    container = profile.container
    # A preemption may send SIGUSR2 before its handler is installed, which would kill the task.
    words = ["env", "--ignore-signal=USR2"]
    if container is None:
        words.append(sys.executable)
    elif container.how == "pyxis":
        words.append(container.python)
    else:
        mounts = [word for mount in container.mounts for word in ("--bind", mount)]
        gpus = ["--nv"] if profile.gpus_per_node else []
        words += ["apptainer", "exec", *gpus, *mounts, container.image, container.python]
    return shlex.join(words)


def sbatch_parameters(profile: Profile, name: str, files: Path) -> dict[str, Any]:
    """Parameters of submitit's Slurm executor, for jobs whose files are in ``files``."""
    options = {
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "constraint": profile.constraint,
        "time": profile.time_min,
        "gpus_per_node": profile.gpus_per_node or None,
        "cpus_per_task": profile.cpus_per_task,
        "mem": profile.mem,
    }
    extra = {key.replace("_", "-"): value for key, value in profile.sbatch.items() if value is not False}
    return {
        "job_name": name,
        "nodes": profile.nodes,
        "ntasks_per_node": profile.tasks,
        **{key: value for key, value in options.items() if value is not None},
        "signal_delay_s": profile.signal_delay,
        "stderr_to_stdout": True,
        # Some sites reject jobs with an unknown accounting key, and submitit sets one by default.
        "wckey": None,
        "setup": start_lines(profile),
        "srun_args": srun_options(profile.container),
        "teardown": end_lines(files, profile.retries),
        "additional_parameters": {"requeue": True, **extra},
    }
