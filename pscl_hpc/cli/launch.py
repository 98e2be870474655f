"""``pscl-hpc submit`` and ``pscl-hpc jobs``."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Literal, TextIO

import typer

from pscl_hpc.errors import EXIT_FAILED

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value instead of text.")]


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command("submit")(submit)
    jobs = typer.Typer(no_args_is_help=True, help=JOBS_HELP)
    jobs.command("list")(list_runs)
    jobs.command("status")(status)
    jobs.command("logs")(logs)
    jobs.command("cancel")(cancel)
    app.add_typer(jobs, name="jobs")


JOBS_HELP = """List, follow and cancel jobs.

A job belongs to the run folder that it fills; commands take that folder.

Examples:

    pscl-hpc jobs list

    pscl-hpc jobs status runs/my-run

    pscl-hpc jobs logs -f runs/my-run

    pscl-hpc jobs cancel runs/my-run
"""


def submit(
    stage: Annotated[
        Literal["pretrain", "finetune"], typer.Argument(metavar="pretrain|finetune", help="What to run.")
    ],
    config: Annotated[Path, typer.Option("--config", help="Configuration file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Values that replace those of the file."),
    ] = None,
    cluster: Annotated[
        Literal["local", "slurm"] | None,
        typer.Option(help="Where to run. By default Slurm where it answers, else this machine."),
    ] = None,
    partition: Annotated[str | None, typer.Option(help="Slurm partition.")] = None,
    time: Annotated[
        str | None,
        typer.Option(help="Time limit, minutes or D-HH:MM:SS; a job that meets it goes on in a new one."),
    ] = None,
    cpus: Annotated[int | None, typer.Option(min=1, help="CPU cores.")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Show the log and wait for the end.")] = False,
    as_json: Json = False,
) -> None:
    """Run pretrain or finetune as a job, on this machine or on Slurm.

    The job does what 'pscl-hpc pretrain' or 'pscl-hpc finetune' does and outlives this shell. Its files lie in the
    folder jobs of the run. Submitting an unfinished run again (run=FOLDER) continues it from its last checkpoint.

    Examples:

        pscl-hpc submit pretrain --config my.yaml

        pscl-hpc submit pretrain --config my.yaml run=runs/a schedule.steps=500 --wait

        pscl-hpc submit finetune --config tune.yaml --cluster slurm --partition gpu --time 4:00:00 --gpus 1
    """
    from pscl_hpc.config import load_config
    from pscl_hpc.launch.executors import Resources, default_cluster, parse_time

    loaded = load_config(config, overrides or [], kind=stage)
    # These import torch, which a mistyped file name need not wait for.
    from pscl_hpc.launch.jobs import run_status
    from pscl_hpc.launch.submission import submit as submit_run

    done = submit_run(
        loaded,
        cluster=cluster or default_cluster(),
        resources=Resources(
            partition=partition, time_min=parse_time(time) if time else None, cpus=cpus, gpus=gpus
        ),
    )
    if not as_json:
        typer.echo(
            f"job {done.job.job} ({done.job.cluster}); follow it with: pscl-hpc jobs logs -f {done.run}"
        )
    failed = _wait(done.run, sys.stderr) if wait else False
    if as_json:
        values = {
            "run": str(done.run),
            "job": done.job.job,
            "cluster": done.job.cluster,
            "log": str(done.job.log(done.run)),
            "state": run_status(done.run).state,
        }
        typer.echo(json.dumps(values, indent=2))
    else:
        typer.echo(done.run)
    if failed:
        raise typer.Exit(EXIT_FAILED)


def list_runs(
    runs: Annotated[Path, typer.Option(help="The folder that holds the run folders.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """List runs with their state, progress and job.

    Examples:

        pscl-hpc jobs list

        pscl-hpc jobs list --runs /scratch/me/runs --json
    """
    from pscl_hpc.launch.jobs import find_runs, run_status

    found = [run_status(run) for run in find_runs(runs)]
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(each) for each in found], indent=2))
        return
    rows = [("run", "stage", "state", "step", "loss", "left", "job")]
    for each in found:
        loss = "" if each.loss is None else f"{each.loss:.4g}"
        job = f"{each.job} ({each.cluster})" if each.job else ""
        step = f"{each.step}/{each.total}"
        rows.append((each.run, each.kind, each.state, step, loss, _duration(each.eta_s), job))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows if found else []:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())
    if not found:
        typer.echo(f"no runs in {runs}")


def status(run: Run, as_json: Json = False) -> None:
    """Show where a run stands: state, step, loss, images per second, time left, last checkpoint.

    Examples:

        pscl-hpc jobs status runs/my-run

        pscl-hpc jobs status runs/my-run --json
    """
    from pscl_hpc.launch.jobs import run_status

    found = run_status(run)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found), indent=2))
        return
    lines = {
        "state": found.state + (f" ({found.detail})" if found.detail else ""),
        "step": f"{found.step} of {found.total}",
        "loss": "" if found.loss is None else f"{found.loss:.6g}",
        "images/s": "" if found.images_per_second is None else f"{found.images_per_second:.4g}",
        "time left": _duration(found.eta_s),
        "checkpoint": "" if found.checkpoint is None else f"step {found.checkpoint}",
        "attempts": str(found.attempts),
        "job": f"{found.job} ({found.cluster})" if found.job else "started by hand",
        "run": found.run,
    }
    for name, value in lines.items():
        if value:
            typer.echo(f"{name + ':':<12}{value}")


def logs(
    run: Run,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    rank: Annotated[int, typer.Option(min=0, help="The rank whose log to show.")] = 0,
) -> None:
    """Print the log of the newest job of a run.

    Examples:

        pscl-hpc jobs logs runs/my-run

        pscl-hpc jobs logs -f runs/my-run
    """
    from pscl_hpc.launch.jobs import follow_log

    for text in follow_log(run, rank, follow=follow):
        sys.stdout.write(text)
        sys.stdout.flush()


def cancel(run: Run, as_json: Json = False) -> None:
    """Stop the newest job of a run. Its checkpoints stay; submitting it again continues it.

    Examples:

        pscl-hpc jobs cancel runs/my-run
    """
    from pscl_hpc.launch.jobs import cancel as cancel_job

    found = cancel_job(run)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        typer.echo(f"job {found.job}: {found.state} at step {found.step} of {found.total}")
        typer.echo(run)


def _wait(run: Path, stream: TextIO) -> bool:
    """Show the log until the job ends; whether the run is not done then."""
    from pscl_hpc.launch.jobs import follow_log, run_status

    for text in follow_log(run, follow=True):
        print(text, end="", file=stream, flush=True)
    found = run_status(run)
    if found.state != "done":
        print(f"{run}: {found.state}{': ' + found.detail if found.detail else ''}", file=stream)
    return found.state != "done"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
