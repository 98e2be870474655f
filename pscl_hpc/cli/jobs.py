"""``pscl-hpc jobs``."""

from __future__ import annotations

import dataclasses
import datetime
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pscl_hpc.cli.options import JSON, print_json
from pscl_hpc.errors import EXIT_SKIPPED, UserError

if TYPE_CHECKING:
    from pscl_hpc.launch.status import RunStatus

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]
JOBS_HELP = """List, follow, cancel and requeue jobs.

A job belongs to a run folder, and the commands take that folder.

**Examples**

`pscl-hpc jobs list`

`pscl-hpc jobs status runs/my-run`

`pscl-hpc jobs logs -f runs/my-run`

`pscl-hpc jobs cancel runs/my-run`

`pscl-hpc jobs requeue runs/my-run`
"""


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    jobs = typer.Typer(no_args_is_help=True, help=JOBS_HELP)
    jobs.command("list")(list_runs)
    jobs.command("status")(status)
    jobs.command("logs")(logs)
    jobs.command("cancel")(cancel)
    jobs.command("requeue")(requeue)
    app.add_typer(jobs, name="jobs")


def list_runs(
    runs: Annotated[Path, typer.Option(help="The folder that holds the run folders.")] = Path("runs"),
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """List runs with their state, progress and job. Exit code 1: some folders are damaged and were skipped.

    **Examples**

    `pscl-hpc jobs list`

    `pscl-hpc jobs list --runs /scratch/me/runs --json`
    """
    from pscl_hpc.launch.status import list_statuses

    found, damaged = list_statuses(runs)
    if as_json:
        print_json([dataclasses.asdict(each) for each in found])
    else:
        _table(found)
        if not found and not damaged:
            typer.echo(f"no runs in {runs}")
    for sentence in damaged:
        typer.echo(f"skipped: {sentence}", err=True)
    if damaged:
        raise typer.Exit(EXIT_SKIPPED)


def status(run: Run, as_json: Annotated[bool, JSON] = False) -> None:
    """Show the state of a run: step, loss, images per second, time left, last checkpoint.

    **Examples**

    `pscl-hpc jobs status runs/my-run`

    `pscl-hpc jobs status runs/my-run --json`
    """
    from pscl_hpc.launch.status import run_status

    found = run_status(run)
    if as_json:
        print_json(dataclasses.asdict(found))
        return
    lines = {
        "state": found.state + (f" ({found.detail})" if found.detail else ""),
        "step": _steps(found, " of "),
        "loss": "" if found.loss is None else f"{found.loss:.6g}",
        "images/s": "" if found.images_per_second is None else f"{found.images_per_second:.4g}",
        "time left": _duration(found.eta_s),
        "checkpoint": "" if found.checkpoint is None else f"step {found.checkpoint}",
        "restarts": f"{found.restarts}, last reason: {found.last_end}" if found.restarts else "",
        "job": f"{found.job} ({found.cluster})" if found.job else "started by hand",
        "ranks": str(found.ranks) if found.ranks > 1 else "",
        "purge": found.purge,
        "run": found.run,
    }
    for name, value in lines.items():
        if value:
            typer.echo(f"{name + ':':<12}{value}")


def logs(
    run: Run,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Follow the log until the job ends.")
    ] = False,
    rank: Annotated[int | None, typer.Option(min=0, help="Rank whose log is printed; 0 by default.")] = None,
    node: Annotated[str | None, typer.Option(help="Print the logs of all ranks on this node.")] = None,
) -> None:
    """Print the log of the newest job of a run.

    **Examples**

    `pscl-hpc jobs logs runs/my-run`

    `pscl-hpc jobs logs -f runs/my-run`

    `pscl-hpc jobs logs runs/my-run --rank 3`

    `pscl-hpc jobs logs runs/my-run --node n2`
    """
    from pscl_hpc.launch.control import follow_log, ranks_of_node

    if node is not None and (follow or rank is not None):
        raise UserError("--node prints the logs of several ranks once; leave out --follow and --rank")
    ranks = [rank or 0] if node is None else ranks_of_node(run, node)
    for each in ranks:
        for text in follow_log(run, each, follow=follow):
            sys.stdout.write(text)
            sys.stdout.flush()


def requeue(run: Run, as_json: Annotated[bool, JSON] = False) -> None:
    """Restart the job of a run.

    A running job is asked to save first, and is restarted in any case. A run that failed or was stopped is submitted
    again with the same resources.

    Example: pscl-hpc jobs requeue runs/my-run
    """
    from pscl_hpc.launch.control import requeue as requeue_job

    _show_end(requeue_job(run), as_json)


def cancel(run: Run, as_json: Annotated[bool, JSON] = False) -> None:
    """Stop the newest job of a run. The checkpoints are kept, and submitting the run again resumes it.

    Example: pscl-hpc jobs cancel runs/my-run
    """
    from pscl_hpc.launch.control import cancel as cancel_job

    _show_end(cancel_job(run), as_json)


def _show_end(found: RunStatus, as_json: bool) -> None:
    if as_json:
        print_json(dataclasses.asdict(found))
    else:
        why = f" ({found.detail})" if found.state == "failed" else ""
        steps = _steps(found, " of ")
        typer.echo(f"job {found.job}: {found.state}{f' at step {steps}' if steps else ''}{why}")
        typer.echo(found.run)


def _table(found: list[RunStatus]) -> None:
    rows = [("run", "stage", "state", "step", "loss", "left", "job")]
    for each in found:
        loss = "" if each.loss is None else f"{each.loss:.4g}"
        job = f"{each.job} ({each.cluster})" if each.job else ""
        rows.append((each.run, each.kind, each.state, _steps(each, "/"), loss, _duration(each.eta_s), job))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows if found else []:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())


def _steps(found: RunStatus, between: str) -> str:
    """The step of a run and their number; empty for a finished run without steps, as of some pixel classifiers."""
    if found.state == "done" and not found.step:
        return ""
    return f"{found.step}{between}{found.total or '?'}"


def _duration(seconds: float | None) -> str:
    return "" if seconds is None else str(datetime.timedelta(seconds=round(seconds)))
