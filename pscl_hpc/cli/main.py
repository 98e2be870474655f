"""Entry of the console command ``pscl-hpc``.

The help page is made from the table below without importing any command: a command's module is imported when it is
run. Errors that a user can cause are one sentence with exit code 2, see :mod:`pscl_hpc.errors`.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from pscl_hpc import __version__
from pscl_hpc.cli.signals import end_on_signals, signalled
from pscl_hpc.errors import EXIT_DONE, EXIT_FAILED, EXIT_INPUT, EXIT_STOPPED, JobError, UserError

TRACEBACK_VARIABLE = "PSCL_HPC_TRACEBACK"

DATA, TRAIN, LOOK, CLUSTER = "Data", "Train", "Look", "Cluster and machine"


@dataclass(frozen=True)
class Entry:
    """A line of the help page, and the location of its command: ``module:attribute``.

    The attribute is a Typer application (a command group) or a function that registers commands on one.
    """

    name: str
    panel: str
    help: str
    target: str


COMMANDS = (
    Entry("segment", TRAIN, "From a folder and one mask to phase fractions: pack, train, predict, measure.",
          "pscl_hpc.cli.segment:register"),
    Entry("archive", DATA, "Pack micrographs and masks into an HDF5 archive, check it, look into it.",
          "pscl_hpc.cli.archive:archive_app"),
    Entry("pretrain", TRAIN, "Pretrain a network on unlabelled micrographs.",
          "pscl_hpc.cli.pretraining:register"),
    Entry("finetune", TRAIN, "Train a segmentation model on one annotated image.",
          "pscl_hpc.cli.segmentation:register"),
    Entry("classifier", TRAIN, "Train a pixel classifier on one annotated image, in seconds: a first look.",
          "pscl_hpc.cli.segmentation:register"),
    Entry("evaluate", LOOK, "Score a fine-tuned run or a classifier on annotated images: Dice, IoU, pixel accuracy.",
          "pscl_hpc.cli.segmentation:register"),
    Entry("predict", LOOK, "Segment images of any size with a fine-tuned run or a classifier.",
          "pscl_hpc.cli.segmentation:register"),
    Entry("measure", LOOK, "Phase fractions, particles and grain size of images or masks, with intervals.",
          "pscl_hpc.cli.measure:register"),
    Entry("export", LOOK, "Write a fine-tuned model as an ONNX file.",
          "pscl_hpc.cli.export:register"),
    Entry("study", TRAIN, "Compare pretraining methods on several data sets, with a table and a page.",
          "pscl_hpc.cli.study:register"),
    Entry("config", TRAIN, "Print every key of a configuration, or check a file.",
          "pscl_hpc.cli.config:config_app"),
    Entry("report", LOOK, "Show runs on one self-contained HTML page.",
          "pscl_hpc.cli.report:register"),
    Entry("replay", LOOK, "Repeat the step that stopped a run because a value was not finite.",
          "pscl_hpc.cli.replay:register"),
    Entry("submit", CLUSTER, "Run pretrain, finetune, classifier or a study as jobs, on this machine or on Slurm.",
          "pscl_hpc.cli.submit:register"),
    Entry("jobs", CLUSTER, "List, follow, cancel and requeue jobs.",
          "pscl_hpc.cli.jobs:register"),
    Entry("plan", CLUSTER, "Predict step time, memory and scaling on up to 1,024 GPUs.",
          "pscl_hpc.cli.plan:register"),
    Entry("doctor", CLUSTER, "Check what this machine can do, and say how to fix what is missing.",
          "pscl_hpc.cli.doctor:register"),
)  # fmt: skip


class LazyGroup(TyperGroup):
    """A group of placeholders that imports a command when it is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The name, the imported command and the arguments left."""
        name, command, rest = super().resolve_command(ctx, args)
        entry = next((entry for entry in COMMANDS if entry.name == name), None)
        return name, (load_command(entry) if entry else command), rest


def load_command(entry: Entry) -> Any:
    """Import the command of a line of the help page."""
    module, _, attribute = entry.target.partition(":")
    target = getattr(importlib.import_module(module), attribute)
    home = typer.Typer(rich_markup_mode="markdown")
    if isinstance(target, typer.Typer):
        home.add_typer(target, name=entry.name)
    else:
        target(home)
    return typer.main.get_group(home).commands[entry.name]


app = typer.Typer(
    cls=LazyGroup,
    add_completion=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with 'pscl-hpc doctor' and, in a checkout, 'make demo'. 'pscl-hpc COMMAND --help' shows examples. "
    "Exit codes: 0 done, 1 done with items skipped (named), 2 wrong input or configuration, 3 the job itself failed, "
    "130 stopped on request (the same command resumes), 143 ended by SIGTERM.",
)


@app.callback(invoke_without_command=True)
def options(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    show_traceback: Annotated[
        bool,
        typer.Option(
            "--traceback", help=f"Print the traceback of an unexpected error; or set {TRACEBACK_VARIABLE}=1."
        ),
    ] = False,
) -> None:
    """Segment alloy micrographs from one annotated image.

    'segment' does everything from a folder and one mask. The other commands are its single steps: pack the images into
    an archive, optionally pretrain a network on it by patch-sampled contrastive learning (PSCL), fine-tune it on one
    annotated image, score, predict, measure and report. 'submit' runs them on a cluster.
    """
    if version:
        typer.echo(f"pscl-hpc {__version__}")
        raise typer.Exit(EXIT_DONE)
    if show_traceback:
        os.environ[TRACEBACK_VARIABLE] = "1"
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())
        raise typer.Exit(EXIT_INPUT)


def _placeholder() -> None:
    raise AssertionError("a placeholder of the help page was run")


for _entry in COMMANDS:
    app.command(_entry.name, help=_entry.help, rich_help_panel=_entry.panel)(_placeholder)


def run() -> NoReturn:
    """Run the console command and exit with its code."""
    end_on_signals()
    sys.exit(main(sys.argv[1:]))


def main(arguments: list[str]) -> int:
    """Run with ``arguments`` and return the exit code; errors of a command do not raise."""
    try:
        code = typer.main.get_command(app).main(arguments, prog_name="pscl-hpc", standalone_mode=False)
    except typer.Abort:
        code = EXIT_STOPPED
    except Exception as error:
        code = signalled()
        if code is None:
            return _report(error)
    if code == EXIT_STOPPED:
        print("interrupted", file=sys.stderr)
    return code if isinstance(code, int) else EXIT_DONE


def _report(error: Exception) -> int:
    """Print an error as one sentence; its exit code."""
    if isinstance(error, UserError | JobError):
        return _fail(str(error), EXIT_INPUT if isinstance(error, UserError) else EXIT_FAILED)
    if hasattr(error, "format_message"):
        return _usage(error)
    return _fail(
        f"{type(error).__name__}: {error or 'no message'}".replace("\n", " ")
        + "; run again as 'pscl-hpc --traceback ...' to see where",
        EXIT_FAILED,
    )


def _usage(error: Any) -> int:
    """A usage error as one sentence."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return EXIT_INPUT
    where = f"; see '{error.ctx.command_path} --help'" if getattr(error, "ctx", None) else ""
    # Typer passes on pydantic's messages.
    sentence = " ".join(str(error.format_message()).split()).rstrip(".").replace(": Value error, ", ": ")
    for kind, wanted in (("number", "a number, with a decimal point"), ("integer", "a whole number")):
        message = f"Input should be a valid {kind}, unable to parse string as "
        sentence = re.sub(f"{message}.*", f"give {wanted}", sentence)
    return _fail(sentence + where, EXIT_INPUT)


def _fail(sentence: str, code: int) -> int:
    if os.environ.get(TRACEBACK_VARIABLE, "0") not in ("", "0"):
        traceback.print_exc()
    print(f"error: {sentence}", file=sys.stderr)
    return code
