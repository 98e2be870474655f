"""The batch script of a Slurm job: what runs before the tasks, how they are started, and what happens when they end.

The script runs on the job's first node, outside any container, and outlives the tasks. Slurm itself requeues a job that
it preempted or whose node went down, but marks a job FAILED when one of its tasks fails; then the batch script requeues
it, while the run makes progress or the retries last.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

from pscl_hpc.launch.ends import (
    BAD_NODE,
    EXIT_FULL,
    FULL,
    FULL_REASON,
    PROBE_BYTES,
    REFUSED,
    REQUEUE,
    STOPPED,
)
from pscl_hpc.launch.profiles import Container, Profile

_START = """\
files={files}
restart=${{SLURM_RESTART_COUNT:-0}}
job=$SLURM_JOB_ID
[ -z "$SLURM_ARRAY_JOB_ID" ] || job=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID
given={comment}
shown() {{ scontrol show job --oneliner "$SLURM_JOB_ID" 2> /dev/null; }}
tell() {{ # Slurm's own record of the job, behind the user's comment
    scontrol update JobId="$SLURM_JOB_ID" Comment="${{given:+$given; }}$1" > /dev/null 2>&1
}}
end_for_good() {{ # WORD REASON EXIT_CODE
    trap - EXIT
    echo "error: $2" >&2
    printf '%s\\n' "$1" "$2" 2> /dev/null > "$files/$job.$restart.end"
    tell "$2"
    clean
    exit "$3"
}}
# srun names the node of a rank that died.
messages=$(mktemp 2> /dev/null || echo /dev/null)
clean() {{ [ "$messages" = /dev/null ] || rm -f "$messages"; }}
exec 4>> "$messages"
exec 3> >(exec tee -a /dev/fd/4 >&2)
relay=$!
exec 4>&-
trap 'code=$?; end_for_good {refused} "setup on $SLURMD_NODENAME: $BASH_COMMAND ended with exit code $code" 2' EXIT
set -e"""
_READY = """\
set +e
trap clean EXIT"""
_END = """\
tasks=$!
exec 3>&-
again() {{
    # Slurm then ends this script and all that it started, but the job must be pending for the second command.
    trap '' TERM
    local others
    others=$(avoid)
    scontrol requeue "$SLURM_JOB_ID" || exit "$code"
    [ -z "$others" ] || scontrol update JobId="$SLURM_JOB_ID" ExcNodeList="$others"
    sleep 600
    exit "$code"
}}
avoid() {{ # The nodes to exclude: those on which ranks died, if more nodes than the job needs are left.
    local bad old left
    bad=$(awk '$4 != "-" {{ print $4 }}' "$files/$job.failures" 2> /dev/null | sort -u)
    [ -n "$bad" ] || return 0
    left=$(sinfo -h -N -p "$SLURM_JOB_PARTITION" -t idle,mix,alloc,comp -o %N | sort -u | grep -cvxF "$bad")
    [ "$left" -gt "$SLURM_JOB_NUM_NODES" ] || return 0
    old=$(shown | sed -n 's/.* ExcNodeList=\\([^ ]*\\).*/\\1/p' | grep -v null)
    printf '%s\\n' $old $bad | paste -sd ,
}}
room() {{ # FOLDER: a little more can be written there
    head -c {probe} /dev/zero 2> /dev/null > "$1/.$job.probe"
    local full=$?
    rm -f "$1/.$job.probe"
    return $full
}}
# SIGTERM interrupts `wait`. The tasks may then use the time that Slurm leaves them. At the time limit the job is
# requeued even if they could not save.
while wait "$tasks"; code=$?; kill -0 "$tasks" 2> /dev/null; do
    case $(shown) in *Reason=TimeLimit*) break ;; esac
done
[ "$code" != 0 ] || exit 0
# A task that ends on purpose writes a status file; any other non-zero end is a failure.
case $(head -n 1 "$files/$job.$restart.end" 2> /dev/null) in
{stopped}) scancel "$SLURM_JOB_ID" && sleep 600; exit "$code" ;;
{refused}) tell "$(sed -n 2p "$files/$job.$restart.end")"; exit 2 ;;
{full}) tell "$(sed -n 2p "$files/$job.$restart.end")"; exit {exit_full} ;;
{requeue}) again ;;
{bad_node}) bad=$(sed -n 3p "$files/$job.$restart.end") ;; # it is avoided as one on which a rank died
esac
case $(shown) in
*JobState=RUNNING*) for _ in {{1..20}}; do kill -0 "$relay" 2> /dev/null && sleep 0.1 || break; done ;;
*Reason=TimeLimit*) ;;
*) exit "$code" ;; # Slurm is ending the job: cancelled, requeued, or a node went down.
esac
run=$(cat "$files/$job.run" 2> /dev/null)
newest=$(ls "$run/checkpoints" 2> /dev/null | sed -n 's/^step-0*\\([0-9][0-9]*\\)\\.pt$/\\1/p' | sort -n | tail -n 1)
died=$(grep -m 1 '^srun: error: [^ :]*: task' "$messages" | grep -v "Exited with")
node=${{bad:-$(echo "$died" | sed -n 's/^srun: error: \\([^ :]*\\):.*/\\1/p')}}
# This may be the node that cannot write into the run folder.
room "$files" && {{ [ -n "$bad" ] || room "${{run:-$files}}"; }} &&
    echo "$restart $code ${{newest:--}} ${{node:--}}" >> "$files/$job.failures" ||
    end_for_good {full} {full_reason} {exit_full}
count=$(awk -v newest="${{newest:--}}" '$3 == newest' "$files/$job.failures" | wc -l)
[ "$count" -gt {retries} ] || again
[ "$code" -le 128 ] || killed=", killed by signal $((code - 128))"
end_for_good {refused} "a rank${{node:+ on $node}} ended with exit code $code$killed; $count starts failed without a \
new checkpoint, and retries is {retries}" "$code\""""
REFERENCE = re.compile(r"\$(?:(?P<plain>[A-Za-z_]\w*)|\{(?P<braced>[A-Za-z_]\w*)\})")
"""A variable in a value of the profile's environment."""


def start_lines(profile: Profile, files: Path) -> list[str]:
    """Shell lines before the tasks start; ``files`` is the folder of the job's files. A line that fails ends the job."""
    return [
        # Since Slurm 22.05 srun reads the number of cores from this variable only.
        'export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"',
        'export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$SRUN_CPUS_PER_TASK}"',
        # Without a trap, the SIGTERM with which Slurm ends a job would kill the shell before it can decide anything.
        "trap : TERM",
        *_START.format(
            files=shlex.quote(str(files)),
            refused=REFUSED,
            comment=shlex.quote(str(profile.sbatch.get("comment", ""))),
        ).splitlines(),
        *(f"export {name}={_shell_text(name, value)}" for name, value in profile.environment.items()),
        *profile.setup,
        *_READY.splitlines(),
    ]


def end_lines(retries: int) -> list[str]:
    """Shell lines after the tasks have started."""
    return _END.format(
        retries=retries,
        stopped=STOPPED,
        refused=REFUSED,
        requeue=REQUEUE,
        full=FULL,
        bad_node=BAD_NODE,
        full_reason=shlex.quote(FULL_REASON),
        exit_full=EXIT_FULL,
        probe=PROBE_BYTES,
    ).splitlines()


def _shell_text(name: str, value: str) -> str:
    """A value as a word of the shell, in which only references to variables are replaced, on the node."""
    if not REFERENCE.search(value):
        return shlex.quote(value)
    parts, end = [], 0
    for found in REFERENCE.finditer(value):
        parts.append(re.sub(r'([\\"`$])', r"\\\1", value[end : found.start()]))
        variable = found["plain"] or found["braced"]
        parts.append(f"${{{variable}?environment.{name} of the profile names {variable}, which is not set}}")
        end = found.end()
    parts.append(re.sub(r'([\\"`$])', r"\\\1", value[end:]))
    return f'"{"".join(parts)}"'


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
        gpus = ["--nv"] if profile.gpus else []
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
        "setup": start_lines(profile, files),
        "srun_args": srun_options(profile.container),
        "teardown": end_lines(profile.retries),
        "additional_parameters": {"requeue": True, **extra},
    }
