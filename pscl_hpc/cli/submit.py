"""``pscl-hpc submit``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal, TextIO

import typer

from pscl_hpc.cli.options import JSON, print_json
from pscl_hpc.cli.study import study_command
from pscl_hpc.errors import EXIT_FAILED, UserError


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("submit")(submit)


def submit(
    stage: Annotated[
        Literal["pretrain", "finetune", "classifier", "study"],
        typer.Argument(metavar="pretrain|finetune|classifier|study", help="What to run."),
    ],
    config: Annotated[Path, typer.Option("--config", help="Configuration file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Overrides of the file's values."),
    ] = None,
    cluster: Annotated[
        Literal["local", "slurm"] | None,
        typer.Option(help="Where to run; by default on Slurm if it answers, else on this machine."),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(help="Cluster profile, a name or a YAML file; the options below override its values."),
    ] = None,
    partition: Annotated[str | None, typer.Option(help="Slurm partition.")] = None,
    account: Annotated[str | None, typer.Option(help="Slurm account.")] = None,
    time: Annotated[
        str | None,
        typer.Option(
            help="Time limit, minutes or D-HH:MM:SS; a job that reaches it saves, is requeued and resumes."
        ),
    ] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Nodes.")] = None,
    gpus_per_node: Annotated[
        str | None, typer.Option(help="GPUs per node, such as 4 or a100:4; one rank runs on each.")
    ] = None,
    tasks_per_node: Annotated[int | None, typer.Option(min=1, help="Ranks per node, on CPUs.")] = None,
    cpus: Annotated[int | None, typer.Option(min=1, help="CPU cores per rank.")] = None,
    debug_nccl: Annotated[
        bool | None, typer.Option("--debug-nccl", help="Record the communication of the ranks.")
    ] = None,
    retries: Annotated[
        int | None, typer.Option(min=0, help="Restarts after a crash without a new checkpoint; 3 by default.")
    ] = None,
    any_commit: Annotated[
        bool, typer.Option("--any-commit", help="Start the job even if the code changes while it waits.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the Slurm batch script and submit nothing.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Show the log and wait until the job ends.")] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Run pretrain, finetune, classifier or a study as jobs, on this machine or on Slurm.

    The job runs 'pscl-hpc pretrain', 'finetune' or 'classifier' and outlives this shell. Its files are in the folder
    jobs of the run. Submitting an unfinished run again (run=FOLDER) resumes it from its last checkpoint.

    Keys of a profile may also be in the run's own file, in a section 'cluster', which running it by hand ignores.
    Options given here override them, and they override the profile.

    A study is many jobs that depend on each other. 'submit study' is the same as 'pscl-hpc study FILE --cluster ...':
    it submits the jobs that can start, and waits. After an interruption the same command finds its jobs again.

    **Examples**

    `pscl-hpc submit pretrain --config my.yaml`

    `pscl-hpc submit pretrain --config my.yaml run=runs/a schedule.steps=500 --wait`

    `pscl-hpc submit pretrain --config my.yaml --cluster slurm --profile site --nodes 4 --gpus-per-node 8 --dry-run`

    `pscl-hpc submit finetune --config tune.yaml --cluster slurm --partition gpu --time 4:00:00 --gpus-per-node 1`
    """
    from pscl_hpc.config import load_cluster, load_config
    from pscl_hpc.launch.executors import default_cluster
    from pscl_hpc.launch.profiles import requested_profile

    if stage == "study":
        shapes = {
            "--nodes": nodes,
            "--tasks-per-node": tasks_per_node,
            "--account": account,
            "--retries": retries,
            "--debug-nccl": debug_nccl,
        }
        if given := [name for name, value in shapes.items() if value is not None]:
            raise UserError(f"{given[0]} is not an option for a study; put it into a --profile")
        if wait:
            raise UserError(
                "--wait is for a single run; a study always waits for its jobs, so leave --wait out"
            )
        study_command(
            config, overrides, cluster=cluster or default_cluster(), profile=profile, partition=partition, time=time,
            gpus=gpus_per_node, threads=cpus, any_commit=any_commit, dry_run=dry_run, as_json=as_json,
        )  # fmt: skip
        return
    loaded = load_config(config, overrides or [], kind=stage)
    requested = requested_profile(
        profile,
        load_cluster(config, overrides or []),
        str(config),
        partition=partition,
        account=account,
        time=time,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        tasks_per_node=tasks_per_node,
        cpus_per_task=cpus,
        retries=retries,
        debug_nccl=debug_nccl,
    )
    where = cluster or default_cluster()
    # Imported late because of torch, so that a mistyped file name is reported at once.
    from pscl_hpc.launch.status import run_status, signal_delay_warning
    from pscl_hpc.launch.submission import show_script
    from pscl_hpc.launch.submission import submit as submit_run

    if dry_run:
        script = show_script(loaded, cluster=where, profile=requested)
        print_json({"script": script}) if as_json else typer.echo(script, nl=False)
        return
    done = submit_run(loaded, cluster=where, profile=requested, any_commit=any_commit)
    if warning := signal_delay_warning(done.run, requested):
        typer.echo(f"warning: {warning}", err=True)
    if purge := run_status(done.run).purge:
        typer.echo(purge, err=True)
    if not as_json:
        typer.echo(
            f"job {done.job.job} ({done.job.cluster}); follow it with: pscl-hpc jobs logs -f {done.run}"
        )
    failed = _wait(done.run, sys.stderr) if wait else False
    if as_json:
        job, log = done.job, str(done.job.log(done.run))
        state = run_status(done.run).state
        answer = {"run": str(done.run), "job": job.job, "cluster": job.cluster, "log": log, "state": state}
        print_json(answer)
    else:
        typer.echo(done.run)
    if failed:
        raise typer.Exit(EXIT_FAILED)


def _wait(run: Path, stream: TextIO) -> bool:
    """Show the log until the job ends; True if the run is not done then."""
    from pscl_hpc.launch.control import follow_log
    from pscl_hpc.launch.status import run_status

    for text in follow_log(run, follow=True):
        print(text, end="", file=stream, flush=True)
    found = run_status(run)
    if found.state != "done":
        print(f"{run}: {found.state}{': ' + found.detail if found.detail else ''}", file=stream)
    return found.state != "done"
