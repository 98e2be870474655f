"""``pscl-hpc study``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pscl_hpc.cli.options import JSON, OVERRIDES, print_json
from pscl_hpc.errors import EXIT_SKIPPED, JobError, UserError

if TYPE_CHECKING:
    from pscl_hpc.study.run import StudyState


def register(app: typer.Typer) -> None:
    """Add the command ``study``."""
    app.command("study")(study_command)


def study_command(
    config: Annotated[Path, typer.Argument(metavar="FILE", help="Study file; see configs/studies/.")],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    cluster: Annotated[
        Literal["inline", "local", "slurm"],
        typer.Option(
            help="Where jobs run. inline: processes that end with this command. local: processes that outlive it. "
            "slurm: job arrays."
        ),
    ] = "inline",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Jobs at a time; by default 1, on Slurm all.")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="CPU cores of a job; inline by default all cores, divided among the jobs."),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(help="Cluster profile, by name or YAML file; the options below replace its values."),
    ] = None,
    partition: Annotated[str | None, typer.Option(help="Slurm partition.")] = None,
    time: Annotated[str | None, typer.Option(help="Time limit of a job, minutes or D-HH:MM:SS.")] = None,
    gpus: Annotated[
        str | None, typer.Option(help="GPUs of a job, such as 1 or a100:1 (local and slurm).")
    ] = None,
    any_commit: Annotated[
        bool,
        typer.Option(
            "--any-commit", help="Start cluster jobs even if the code changed after their submission."
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would run; run nothing.")] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Compare pretraining methods: methods x data sets x references x seeds, with a table and a page.

    Finished runs are never repeated: the same command resumes after an interruption, tries failed runs again, and runs
    what was added to the file. Prints the table and the study's folder. Exit code 1: some runs failed and are named.

    **Examples**

    `pscl-hpc study configs/studies/quick.yaml`

    `pscl-hpc study configs/studies/one-shot.yaml archive=alloys.h5 --dry-run`

    `pscl-hpc study configs/studies/one-shot.yaml archive=alloys.h5 --cluster slurm --time 8:00:00 --gpus 1`
    """
    from pscl_hpc.study.config import load_study

    study = load_study(config, overrides or ())
    # Imported here: torch takes seconds that a mistyped file name need not wait for.
    from pscl_hpc.study.run import look, run_study

    if dry_run:
        _show_plan(look(study), as_json)
        return
    from pscl_hpc.launch.profiles import Profile, load_profile
    from pscl_hpc.report import write_report
    from pscl_hpc.report.study_text import markdown
    from pscl_hpc.study.job_pool import JobPool

    if cluster == "inline":
        if profile or partition or time or gpus is not None:
            raise UserError(
                "--profile, --partition, --time and --gpus are for cluster jobs; add --cluster slurm or local"
            )
        at_once = jobs or 1
        wanted = Profile(cpus_per_task=threads or max(1, (os.cpu_count() or 1) // at_once), retries=0)
    else:
        at_once = jobs or (1 if cluster == "local" else sys.maxsize)
        wanted = (load_profile(profile) if profile else Profile()).replace(
            "command line", partition=partition, time=time, gpus_per_node=gpus, cpus_per_task=threads
        )
    executor = JobPool(cluster, wanted, study.folder, study.name, any_commit=any_commit)
    state, results = run_study(study, executor, jobs=at_once, progress=not as_json)
    if results.rows:
        page = write_report([study.folder])
        for line in page.damage:
            typer.echo(f"skipped: {line}", err=True)
    failed = results.failed
    if as_json:
        found = {"folder": str(study.folder), "jobs_missing": len(state.missing)}
        print_json({**found, **results.model_dump(mode="json")})
    else:
        typer.echo(markdown(results))
        typer.echo(study.folder)
    for item in failed:
        print(f"{item.state}: {item.job}: {item.reason}", file=sys.stderr)
    if failed and not results.rows:
        raise JobError(f"no run of {study.folder} could be scored; first reason: {failed[0].reason}")
    if failed:
        raise typer.Exit(EXIT_SKIPPED)


def _show_plan(state: StudyState, as_json: bool) -> None:
    from pscl_hpc.results.study import pool_text

    plan = state.plan
    counts = {
        kind: {
            "runs": sum(job.config.kind == kind for job in plan.jobs.values()),
            "missing": sum(job.config.kind == kind for job in state.missing),
            "finished_elsewhere": sum(plan.jobs[key].config.kind == kind for key in state.elsewhere),
        }
        for kind in ("pretrain", "finetune", "classifier")
    }
    if as_json:
        missing = [
            {
                "job": job.label,
                "folder": str(job.folder),
                "finished_in": str(state.elsewhere.get(job.key, "")),
            }
            for job in state.missing
        ]
        print_json({"cells": len(plan.cells), **counts, "jobs": missing})
        return
    for job in state.missing:
        source = state.elsewhere.get(job.key)
        typer.echo(f"{job.label}: finished in {source}, will be copied" if source else job.label)
    for name, pool in plan.pools.items():
        typer.echo(f"pool of {name}: {pool_text(pool.parts, without_own=pool.without_own)}")
    for kind, count in counts.items():
        if not count["runs"] and kind == "classifier":
            continue
        typer.echo(
            f"{kind}: {count['runs']} runs, {count['missing']} missing"
            + (f", {count['finished_elsewhere']} of these finished elsewhere" if plan.study.reuse else "")
        )
    typer.echo(f"{len(plan.cells)} combinations; nothing was run")
