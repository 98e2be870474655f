"""Other places for the lines of the log: TensorBoard, Weights & Biases, MLflow. Each is an optional package.

Only rank 0 writes a log. A resumed run continues the curve of its tracker, which is found by a name that does not change
with the attempt. A tracker that fails later is reported once and left out; the training does not depend on it.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from pscl_hpc.config import LogConfig, dotted
from pscl_hpc.errors import UserError

_NOT_IN_MLFLOW = re.compile(r"[^/\w.\- :]")
_MLFLOW_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_ALLOW_FILE_STORE": "true",
}
"""A server that does not answer must not hold up the training for long, and a folder that is named is wanted. Values of
the environment have precedence."""


class Tracker(Protocol):
    """Receives the numbers of each line."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """The numbers of a step."""

    def close(self) -> None:
        """Write everything that is held back."""


class TensorBoard:
    """Event files in the folder ``tensorboard`` of the run."""

    def __init__(self, run: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(run / "tensorboard"))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See :class:`Tracker`."""
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        """See :class:`Tracker`."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases; files in the folder ``wandb`` of the run. Steps that it already has are ignored."""

    def __init__(self, run: Path, project: str, identity: str, config: Mapping[str, Any]) -> None:
        import wandb

        self._run: Any = wandb.init(
            project=project,
            id=identity,
            name=run.resolve().name,
            dir=str(run),
            config=dict(config),
            resume="allow",
            settings=wandb.Settings(console="off"),
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See :class:`Tracker`."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """See :class:`Tracker`."""
        self._run.finish()


class MlFlow:
    """A run of MLflow, found by the tag ``pscl_hpc.run``. Steps that it already has are left out."""

    def __init__(self, run: Path, uri: str, name: str, identity: str, config: Mapping[str, Any]) -> None:
        for key, value in _MLFLOW_DEFAULTS.items():
            os.environ.setdefault(key, value)
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client: Any = MlflowClient(tracking_uri=uri)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        found = self._client.search_runs([experiment], f"tags.`pscl_hpc.run` = '{identity}'")
        self._last = 0
        if found:
            self._id: str = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            self._last = max(
                (each.step for each in self._client.get_metric_history(self._id, "loss")), default=0
            )
        else:
            made = self._client.create_run(
                experiment,
                run_name=run.resolve().name,
                tags={"pscl_hpc.run": identity, "folder": str(run.resolve())},
            )
            self._id = made.info.run_id
            params = [Param(key, str(value)[:500]) for key, value in dotted(config).items()]
            for first in range(0, len(params), 100):
                self._client.log_batch(self._id, params=params[first : first + 100])

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See :class:`Tracker`."""
        import time

        from mlflow.entities import Metric

        if step > self._last:
            now = int(1000 * time.time())
            metrics = [
                Metric(_NOT_IN_MLFLOW.sub("_", key), value, now, step) for key, value in values.items()
            ]
            self._client.log_batch(self._id, metrics=metrics)

    def close(self) -> None:
        """See :class:`Tracker`."""
        self._client.set_terminated(self._id)


class Trackers:
    """All trackers of a run; one that fails is left out."""

    def __init__(self, found: Mapping[str, Tracker] | None = None) -> None:
        self._found = dict(found or {})

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """The numbers among the values of a line."""
        numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
        self._each(lambda tracker: tracker.write(step, numbers))

    def close(self) -> None:
        """Flush all."""
        self._each(lambda tracker: tracker.close())

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._found.items()):
            try:
                act(tracker)
            except Exception as error:
                del self._found[name]
                text = f"warning: log.{name}: {type(error).__name__}: {error}; nothing more is written there"
                print(" ".join(text.split()), file=sys.stderr, flush=True)


def open_trackers(config: LogConfig, run: Path, name: str, created: str, tree: Mapping[str, Any]) -> Trackers:
    """The trackers that the configuration asks for.

    Args:
        config: The section ``log``.
        run: The run folder.
        name: Name of the run, which is the experiment in MLflow.
        created: When the run was created: with the name of its folder it identifies the run.
        tree: The configuration as plain values.

    Raises:
        UserError: a package is missing, or a tracker cannot be started.
    """
    identity = hashlib.sha256(f"{run.resolve().name} {created}".encode()).hexdigest()[:16]
    makers: dict[str, Callable[[], Tracker]] = {}
    if config.tensorboard:
        makers["tensorboard"] = lambda: TensorBoard(run)
    if config.wandb:
        makers["wandb"] = lambda: WeightsAndBiases(run, config.wandb, identity, tree)
    if config.mlflow:
        makers["mlflow"] = lambda: MlFlow(run, config.mlflow, name, identity, tree)
    found: dict[str, Tracker] = {}
    for key, make in makers.items():
        try:
            found[key] = make()
        except ImportError:
            raise UserError(f"log.{key} needs a package; pip install 'pscl-hpc[{key}]'") from None
        except Exception as error:
            text = " ".join(str(error).split())
            raise UserError(
                f"log.{key}: cannot be started ({text}); see docs/cluster.md, or leave it out"
            ) from error
    return Trackers(found)
