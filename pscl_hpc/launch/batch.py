"""The batch script around the tasks: what comes before them, how they are started, and what their end leads to.

It runs on the job's first node, outside of any container, and outlives the tasks. It alone starts a job again whose
rank died: Slurm requeues by itself what it took away (preemption, a node that went down), but calls a job FAILED when a
task ended badly.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from pscl_hpc.launch.profiles import Container, Profile

STOPPED, REFUSED, REQUEUE = "stopped", "refused", "requeue"
"""What a task can leave behind for the batch script: stopped on request; the input is wrong; to be started again."""
_END = """\
tasks=$!
shown() {{ scontrol show job --oneliner "$SLURM_JOB_ID" 2> /dev/null; }}
again() {{ scontrol requeue "$SLURM_JOB_ID" && sleep 600; exit "$code"; }}
# SIGTERM interrupts the waiting. The tasks then have what time Slurm leaves them; at the time limit the job goes on in
# a new start even when it could not save.
while wait "$tasks"; code=$?; kill -0 "$tasks" 2> /dev/null; do
    case $(shown) in *Reason=TimeLimit*) break ;; esac
done
[ "$code" != 0 ] || exit 0
# A task that ends on purpose leaves word; any other bad end is a failure.
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
*) exit "$code" ;; # Slurm ends the job: cancelled, requeued, or a node went down.
esac
echo "$restart $code" >> {files}/"$job.failures"
[ "$(wc -l < {files}/"$job.failures")" -gt {retries} ] || again
exit "$code\""""


def start_lines(profile: Profile) -> list[str]:
    """Shell before the tasks start."""
    return [
        # srun takes the number of cores from its own variable only (Slurm 22.05 and later).
        'export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"',
        'export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$SRUN_CPUS_PER_TASK}"',
        # Without a handler the shell would end at the signal by which Slurm ends a job, and decide nothing.
        "trap : TERM",
        *(f"export {name}={shlex.quote(value)}" for name, value in profile.environment.items()),
        *profile.setup,
    ]


def end_lines(files: Path, retries: int) -> list[str]:
    """Shell after the tasks ended; ``files`` is the folder of the job's files."""
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
    """What starts Python in a task, as shell."""
    container = profile.container
    # Until the handler is up, the signal of an early preemption would kill the task.
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
    """Parameters of submitit's Slurm executor for jobs whose files lie in ``files``."""
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
        # Some sites reject jobs with an accounting key that they do not know.
        "wckey": None,
        "setup": start_lines(profile),
        "srun_args": srun_options(profile.container),
        "teardown": end_lines(files, profile.retries),
        "additional_parameters": {"requeue": True, **extra},
    }
