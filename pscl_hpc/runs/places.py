"""Which folder a run has: a new one, or that of the same configuration."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from pscl_hpc.config import RunConfig, dotted, load_config, to_yaml
from pscl_hpc.errors import UserError
from pscl_hpc.files import create_text

CONFIG_FILE = "config.yaml"
_FREE = (
    "run",
    "cache",
    "runtime.workers",
    "runtime.device",
    "runtime.activation_checkpointing",
    "runtime.init_timeout_s",
    "runtime.collective_timeout_s",
    "checkpoint.every_minutes",
    "checkpoint.local",
)
"""Keys that may change between attempts, because they do not affect results."""


def reserve_folder(config: RunConfig) -> Path:
    """The folder of a run, created with its configuration if it is new.

    Raises:
        UserError: the folder holds other files or another configuration, or cannot be created.
    """
    with usable(Path(config.run or "runs")):
        path = Path(config.run) if config.run else _fresh_path(config.name)
        if not check_place(path, config):
            path.mkdir(parents=True, exist_ok=True)
            if not create_text(path / CONFIG_FILE, to_yaml(config)):
                check_same(path, config)
    return path


def check_place(path: Path, config: RunConfig) -> bool:
    """Whether a folder has this run already; nothing is made or changed.

    Raises:
        UserError: it holds other files or another configuration.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file; choose another folder with run=...")
    names = os.listdir(path) if path.exists() else []
    if CONFIG_FILE in names:
        check_same(path, config)
        return True
    if not all(name.startswith(f".{CONFIG_FILE}.") for name in names):
        raise UserError(f"{path}: not empty and not a run folder; choose another folder with run=...")
    return False


@contextlib.contextmanager
def usable(path: Path) -> Iterator[None]:
    """Around creating a run folder: turns an OSError into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: the run folder cannot be created or written ({error.strerror or error}); choose another with "
            "run=..."
        ) from None


def _fresh_path(name: str) -> Path:
    """A new, empty folder below ``runs``; created here, so that no other process gets the same one."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    Path("runs").mkdir(exist_ok=True)
    for count in itertools.count(1):
        path = Path("runs") / (f"{name}-{stamp}" + (f"-{count}" if count > 1 else ""))
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return path
    raise AssertionError("unreachable")


def check_same(path: Path, config: RunConfig) -> None:
    """UserError unless the folder has the run with this configuration, up to keys that do not affect results."""
    # Loaded as a configuration, so that keys missing in the file have their defaults.
    old = dotted(load_config(path / CONFIG_FILE).model_dump(mode="json"))
    new = dotted(config.model_dump(mode="json"))
    changed = [
        key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key) and key not in _FREE
    ]
    if changed:
        key = changed[0]
        raise UserError(
            f"{path}: holds a run with another configuration ({key} is {old.get(key)!r} there, "
            f"{new.get(key)!r} here); choose another folder with run=..."
        )
