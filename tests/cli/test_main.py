"""The help page, and the exit code of every kind of failure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from pscl_hpc import __version__
from pscl_hpc.cli import main as cli
from pscl_hpc.errors import JobError, UserError
from tests.helpers import PATIENCE_S, eventually

from .conftest import Console

HEAVY = ("torch", "h5py", "numpy", "pydantic", "submitit", "matplotlib", "scipy", "PIL")


def test_help_lists_every_command_with_its_purpose(console: Console) -> None:
    page = console("--help")
    assert page.returncode == 0
    assert page.stderr == ""
    words = " ".join(page.stdout.replace("│", " ").split())
    for entry in cli.COMMANDS:
        assert f"{entry.name} {entry.help}" in words
    for panel in (cli.DATA, cli.TRAIN, cli.LOOK, cli.CLUSTER):
        assert f"─ {panel} ─" in page.stdout
    assert all(str(code) in words.partition("Exit codes")[2] for code in (0, 1, 2, 3, cli.EXIT_STOPPED))


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom pscl_hpc.cli.main import main\nassert main(['--help']) == 0\n"
        f"print('LOADED', [name for name in {HEAVY} if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert done.stdout.splitlines()[-1] == "LOADED []"


@pytest.mark.parametrize("entry", cli.COMMANDS, ids=lambda entry: str(entry.name))
def test_every_command_shows_examples_without_importing_torch(entry: cli.Entry) -> None:
    code = (
        "import sys\nfrom pscl_hpc.cli.main import COMMANDS, load_command, main\n"
        f"entry = next(entry for entry in COMMANDS if entry.name == {entry.name!r})\n"
        "below = [[name] for name in getattr(load_command(entry), 'commands', {})] or [[]]\n"
        "for path in below:\n"
        "    print('PAGE', entry.name, *path)\n"
        "    assert main([entry.name, *path, '--help']) == 0\n"
        "print('LOADED', 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    # The help of pretrain lists the methods, whose modules import torch.
    assert done.stdout.splitlines()[-1] == f"LOADED {entry.name == 'pretrain'}"
    for page in done.stdout.split("PAGE ")[1:]:
        command, _, text = page.partition("\n")
        assert f"pscl-hpc {command} " in text.partition("Example")[2] + " ", f"{command} shows no example"


def test_without_arguments_the_help_page_is_shown(console: Console) -> None:
    page = console()
    assert page.returncode == 2
    assert "archive" in page.stdout
    assert page.stderr == ""


def test_version(console: Console) -> None:
    page = console("--version")
    assert (page.returncode, page.stdout) == (0, f"pscl-hpc {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["pretain"], "'pretrain'"),
        (["doctor", "--folders", "x"], "--folders"),
        (["doctor", "surplus"], "surplus"),
        (["submit", "pretrain"], "--config"),
        (["submit", "predict", "--config", "x"], "pretrain|finetune|classifier|study"),
        (["submit", "pretrain", "--config", "x", "--cpus", "0"], "--cpus"),
        (["submit", "pretrain", "--config", "absent.yaml"], "absent.yaml"),
        (["submit", "pretrain", "--config", ".", "--time", "soon"], "error: .:"),
        (["jobs", "status", "absent"], "absent"),
        (["jobs", "list"], "runs"),
        (["doctor", "--folder", "absent"], "absent"),
    ],
)
def test_invalid_input_is_one_error_line_and_exit_code_2(
    console: Console, arguments: list[str], named: str
) -> None:
    done = console(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert named in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command ``doctor`` with the failure that the variable FAILURE names."""
    failures = {
        "user": UserError("a.yaml: is wrong; fix it"),
        "job": JobError("the loss is not finite at step 3"),
        "bug": ZeroDivisionError("division\nby zero"),
        "abort": typer.Abort(),
        "interrupt": KeyboardInterrupt(),
        "skipped": typer.Exit(1),
    }

    def command() -> None:
        raise failures[os.environ["FAILURE"]]

    def load(entry: cli.Entry) -> object:
        home = typer.Typer()
        home.command("doctor")(command)
        home.command("other")(command)
        return typer.main.get_group(home).commands["doctor"]

    monkeypatch.setattr(cli, "load_command", load)


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize(
    ("failure", "code", "start"),
    [
        ("user", 2, "error: a.yaml: is wrong; fix it\n"),
        ("job", 3, "error: the loss is not finite at step 3\n"),
        ("bug", 3, "error: ZeroDivisionError: division by zero"),
        ("abort", 130, "interrupted\n"),
        ("interrupt", 130, "interrupted\n"),
        ("skipped", 1, ""),
    ],
)
def test_every_failure_has_its_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failure: str,
    code: int,
    start: str,
) -> None:
    monkeypatch.setenv("FAILURE", failure)
    assert cli.main(["doctor"]) == code
    shown = capsys.readouterr().err
    assert shown.startswith(start)
    assert shown.count("\n") == bool(start)
    assert ("--traceback" in shown) == (failure == "bug")


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("by_option", [True, False])
def test_a_traceback_is_shown_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], by_option: bool
) -> None:
    monkeypatch.setenv("FAILURE", "bug")
    monkeypatch.setenv(cli.TRACEBACK_VARIABLE, "0" if by_option else "1")
    assert cli.main([*(["--traceback"] if by_option else []), "doctor"]) == 3
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert 'raise failures[os.environ["FAILURE"]]' in shown


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("lost", [False, True])
def test_signals_end_the_command_through_its_clean_up(
    tmp_path: Path, number: signal.Signals, code: int, lost: bool
) -> None:
    """Also where a library turns the exception of the signal into an error of its own."""
    script = (
        "import signal, time\nfrom pathlib import Path\nimport typer\nfrom pscl_hpc.cli import main as cli\n"
        "from pscl_hpc.errors import UserError\n"
        # A test run in the background hands down an ignored SIGINT.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def command():\n"
        "    try:\n"
        "        Path('ready').touch()\n"
        "        time.sleep(600)\n"
        "    except BaseException:\n"
        f"        if {lost}:\n"
        "            raise UserError('a.h5 cannot be read')\n"
        "        raise\n"
        "    finally:\n"
        "        Path('clean').touch()\n"
        "def load(entry):\n"
        "    home = typer.Typer()\n"
        "    home.command('doctor')(command)\n"
        "    home.command('other')(command)\n"
        "    return typer.main.get_group(home).commands['doctor']\n"
        "cli.load_command = load\n"
        "cli.run()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, "doctor"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    eventually((tmp_path / "ready").exists)
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code
    assert (tmp_path / "clean").exists()
    assert "Traceback" not in err
    assert "error" not in err


def test_a_closed_pipe_is_not_an_error(tmp_path: Path) -> None:
    line = f"{sys.executable} -m pscl_hpc.cli doctor --help | head -c 1"
    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert "Traceback" not in done.stderr
