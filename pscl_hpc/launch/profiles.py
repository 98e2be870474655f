"""Cluster profiles: the resources and settings of a job, from YAML files and the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from pscl_hpc.config import Count, Strict, first_problem, read_tree
from pscl_hpc.errors import UserError, did_you_mean
from pscl_hpc.launch.gpus import requested, without_gpus

SIGNAL_DELAY_S = 120
"""Default time between the signal to save and the time limit; half of the limit if that is less."""
_TIME = re.compile(r"^(?:(?:(?P<days>\d+)-)?(?P<hours>\d+):)?(?P<minutes>\d+)(?::(?P<seconds>\d+))?$")
_OURS = ("array", "error", "job-name", "open-mode", "output", "requeue", "no-requeue", "signal", "wckey")
"""Options of sbatch that the submission itself sets."""
_KEYS = {
    "ntasks-per-node": "tasks_per_node",
    "gpus-per-node": "gpus_per_node",
    "cpus-per-task": "cpus_per_task",
}


class Container(Strict):
    """A container in which the tasks run. The batch script itself runs outside it."""

    image: str
    """File or address of the image."""
    how: Literal["apptainer", "pyxis"] = "apptainer"
    """apptainer: tasks run in ``apptainer exec``. pyxis: srun gets ``--container-image``."""
    python: str = "python3"
    """A Python inside the image with pscl_hpc and submitit installed."""
    mounts: tuple[str, ...] = ()
    """Folders to mount, ``outside:inside``; the run folder and the archive must be among them."""


class Profile(Strict):
    """Resources of a job; None for the cluster's default. Also the format of ``slurm/profiles/*.yaml``."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    """Features that the nodes must have, in Slurm's syntax."""
    nodes: Count = 1
    gpus_per_node: int | str | None = None
    """GPUs per node, a number or TYPE:NUMBER such as ``a100:4``; one task runs on each."""
    tasks_per_node: Count | None = None
    """Ranks per node, on CPUs."""
    cpus_per_task: Count | None = None
    mem: str | None = None
    """Memory per node, for example ``64G``."""
    time: str | None = None
    """Time limit, minutes or D-HH:MM:SS; a job that reaches it saves, is requeued and resumes."""
    signal_delay_s: Count | None = None
    """Seconds before the time limit at which the job is signalled to save; 120 by default, or half of a short limit."""
    retries: Annotated[int, Field(ge=0)] = 3
    """How often a job is restarted after a rank crashed or failed, since its last new checkpoint."""
    setup: tuple[str, ...] = ()
    """Shell lines before the tasks start, for example ``module load``; a line that fails ends the job."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the tasks; ``$NAME`` and ``${NAME}`` in a value are replaced on the node."""
    container: Container | None = None
    stage: str | None = None
    """Folder on each node's local disk; the archive is copied to it once and read from there."""
    check_nodes: bool = True
    """Check memory, run folder and clock of each node before its ranks start."""
    debug_nccl: bool = False
    """Record the communication of the ranks into the run folder, for a job whose ranks hang or cannot join."""
    purge_days: Count | None = None
    """Days after which the site deletes files that were not used; the state of a run then tells which goes first."""
    sbatch: dict[str, str | int | bool] = Field(default_factory=dict)
    """Further options of sbatch, without the dashes; true for an option without a value."""

    @field_validator("gpus_per_node", mode="before")
    @classmethod
    def _as_count(cls, value: object) -> object:
        if isinstance(value, str) and value.strip().isdigit():
            value = int(value)
        if isinstance(value, bool) or (isinstance(value, int) and value < 0):
            raise ValueError(f"{value} is not a number of GPUs; write 4, a100:4 or another TYPE:COUNT")
        return value

    @field_validator("time", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _consistent(self) -> Profile:
        if self.gpus and self.tasks_per_node not in (None, self.gpus):
            raise ValueError(
                f"tasks_per_node is {self.tasks_per_node} with {self.gpus} GPUs per node; one task runs on each GPU, "
                "so leave tasks_per_node out"
            )
        if self.stage is not None and not Path(self.stage).is_absolute():
            raise ValueError(f"stage is '{self.stage}'; give an absolute path on the nodes")
        for name in self.environment:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"environment has '{name}', which is not a valid name of a variable")
        for name in self.sbatch:
            option = name.replace("_", "-")
            if option in _OURS:
                raise ValueError(f"sbatch.{name} is set by the submission itself; leave it out")
            key = _KEYS.get(option, option)
            if key in type(self).model_fields:
                raise ValueError(f"sbatch.{name} cannot be set; use the key {key}")
        return self

    @property
    def gpus(self) -> int:
        """GPUs on each node, in whichever form they are requested."""
        return requested(self.gpus_per_node, self.sbatch, self.nodes, self.tasks_per_node)

    @property
    def tasks(self) -> int:
        """Ranks on each node."""
        return self.gpus or self.tasks_per_node or 1

    @property
    def time_min(self) -> int | None:
        """The time limit in minutes."""
        return None if self.time is None else parse_time(self.time)

    @property
    def signal_delay(self) -> int:
        """Seconds between the signal to save and the time limit."""
        limit = self.time_min
        delay = self.signal_delay_s or SIGNAL_DELAY_S
        return delay if limit is None else min(delay, limit * 60 // 2)

    def replace(self, source: str, /, **values: Any) -> Profile:
        """This profile with other values; values that are None are not replaced.

        Raises:
            UserError: they are not valid together; the message begins with ``source``.
        """
        given = {key: value for key, value in values.items() if value is not None}
        base = self.model_dump(exclude_unset=True)
        other = {"gpus_per_node": "tasks_per_node", "tasks_per_node": "gpus_per_node"}
        for key in (key for key in other if given.get(key)):
            if other[key] not in given:
                base[other[key]] = None
            if "sbatch" not in given and base.get("sbatch"):
                base["sbatch"] = without_gpus(base["sbatch"])
        return _check({**base, **given}, source)


def load_profile(name: str) -> Profile:
    """Load a profile by name or from a file.

    A name is looked up in ``~/.config/pscl-hpc/profiles`` and in ``slurm/profiles`` of the checkout.

    Raises:
        UserError: it does not exist, or has an unknown key or an invalid value.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml") and not path.is_file():
        known = known_profiles()
        if name not in known:
            raise UserError(
                f"--profile {name}: profile not found{did_you_mean(name, known)}; give a profile's name or a YAML file "
                "(slurm/README.md explains the keys)"
            )
        path = known[name]
    return _check(read_tree(path), str(path))


def requested_profile(name: str | None, section: Any, source: str, **options: Any) -> Profile:
    """The resources of a job: a profile, over it the section ``cluster`` of the run's file, over that the command line.

    Args:
        name: the profile that the command line names; None for the key ``profile`` of the section.
        section: the section, unchecked; None without one.
        source: the file, for errors.
        options: options of the command line; None where an option was not given.

    Raises:
        UserError: a profile does not exist, or a key or value is not valid.
    """
    keys = {} if section is None else section
    if not isinstance(keys, dict):
        raise UserError(
            f"{source}: cluster holds a value, not keys; see slurm/README.md for the keys of a profile"
        )
    keys = dict(keys)
    named = keys.pop("profile", None)
    if named is not None and not isinstance(named, str):
        raise UserError(f"{source}: key 'cluster.profile' must be the name of a profile or a YAML file")
    base = name or named
    profile = load_profile(base) if base else Profile()
    return profile.replace(f"{source}, section cluster", **keys).replace("command line", **options)


def known_profiles() -> dict[str, Path]:
    """Profiles by name; the user's override those of the checkout."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    folders = (Path(__file__).parents[2] / "slurm" / "profiles", home / "pscl-hpc" / "profiles")
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def parse_time(text: str) -> int:
    """Minutes, rounded up, of ``MINUTES``, ``HOURS:MINUTES:SECONDS`` or ``DAYS-HOURS:MINUTES:SECONDS``.

    Raises:
        UserError: the text has another format, or is less than a minute.
    """
    match = _TIME.match(text.strip())
    # Slurm reads A:B as minutes and seconds, where users often mean hours and minutes, so it is refused.
    if match is None or (match["hours"] is None) != (match["seconds"] is None):
        raise UserError(
            f"--time '{text}' is not a time limit; write minutes or D-HH:MM:SS, for example 90 or 1-12:00:00"
        )
    days, hours, minutes, seconds = (int(match[key] or 0) for key in ("days", "hours", "minutes", "seconds"))
    total = days * 1440 + hours * 60 + minutes + -(-seconds // 60)
    if total < 1:
        raise UserError(f"--time '{text}' is zero; allow at least one minute")
    return total


def _check(tree: Mapping[str, Any], source: str) -> Profile:
    try:
        profile = Profile.model_validate(dict(tree))
    except ValidationError as error:
        raise UserError(f"{source}: {first_problem(Profile, error)}") from None
    if profile.time is not None:
        parse_time(profile.time)
    return profile
