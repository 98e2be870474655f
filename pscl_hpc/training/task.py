"""A task: what the training loop trains. Pretraining and fine-tuning are the two tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from torch import Tensor, nn
from torch.utils.data import Dataset

from pscl_hpc.archive import Archive
from pscl_hpc.config import TrainingConfig
from pscl_hpc.runs import RunFolder
from pscl_hpc.training.ranks import Ranks

BatchT = TypeVar("BatchT")


class StepLoss(NamedTuple):
    """The loss of a batch, and its named terms for the log."""

    total: Tensor
    """Scalar: the loss of the batch of all ranks, equal on every rank; its backward pass gives this rank's share of the
    gradient."""
    terms: dict[str, Tensor]


class Task(ABC, Generic[BatchT]):
    """Base of all tasks. The constructor checks all input and writes nothing.

    Everything random is drawn from generators keyed by the batch number, so that a resumed run repeats the numbers of
    an uninterrupted one. With several ranks each one holds a task on its own share of every batch.

    Args:
        config: The run.
        archive: Its archive, open.
        ranks: The ranks that train together.
    """

    module: nn.Module
    """What is trained, on the device of this rank."""
    dataset: Dataset[BatchT]
    """This rank's share of each batch, by number. Batches have ``ids``, the image of each of their entries."""
    accumulate: int = 1
    """Batches per step: step ``t`` (from 0) uses the numbers ``t * accumulate`` to ``(t + 1) * accumulate - 1``."""
    joint: bool = False
    """The batches of a step have one loss, see :meth:`joint_backward`; otherwise a step has the mean of their losses."""
    validate_every: int = 0
    """Steps between validations, which then decide the best weights; 0: there is no validation."""
    monitor_every: int = 0
    """Steps between calls of :meth:`monitor`, which is also called after the first and the last step; 0: never."""
    keep_lowest_loss: bool = False
    """Keep the checkpoint with the lowest smoothed loss as the best one; for tasks without validation."""

    fewest_steps: int = 100
    """Least steps that ``schedule.minutes`` gives."""
    most_steps: int = 1_000_000
    """Most steps that ``schedule.minutes`` gives."""

    def __init__(self, config: TrainingConfig, archive: Archive, ranks: Ranks) -> None:
        self.archive = archive
        self.ranks = ranks

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """Trained parameters for the optimiser, see :func:`pscl_hpc.training.optimiser.parameter_groups`."""

    @abstractmethod
    def loss(self, module: nn.Module, batch: BatchT, number: int, *, measure: bool) -> StepLoss:
        """Loss of one batch.

        Args:
            module: :attr:`module`, wrapped for data-parallel training; to be called once.
            batch: From :attr:`dataset`.
            number: Number of the batch.
            measure: Also compute terms that are only logged.
        """

    def joint_backward(self, batches: Sequence[BatchT], number: int, *, measure: bool) -> StepLoss:
        """Loss of all batches of a step together; used if :attr:`joint`.

        Its gradient, summed over the ranks, is added to that of the parameters of :attr:`module`.

        Args:
            batches: From :attr:`dataset`.
            number: Number of the first batch.
            measure: Also compute terms that are only logged.
        """
        raise NotImplementedError

    @abstractmethod
    def image_ids(self, number: int) -> Sequence[str]:
        """Archive ids of the images in a batch of all ranks, for error messages."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Weights and buffers, for a checkpoint."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state`."""

    @abstractmethod
    def export(self, folder: RunFolder, best_step: int, best_score: float | None) -> None:
        """Write the results. Called on rank 0 alone, without data-parallel training.

        Args:
            folder: The run.
            best_step: Step of the weights in :attr:`module`: of the best validation, else the last.
            best_score: Score of that validation; None without one.
        """

    def after_step(self, progress: float) -> None:
        """Called after each optimiser step; ``progress`` rises from 0 to 1 over the run."""
        return

    def validate(self, step: int) -> tuple[float | None, dict[str, Any]]:
        """Score the weights after ``step``; called by all ranks.

        Returns:
            The score that decides which weights are kept, higher is better, None when it is not defined; and values
            for the log.
        """
        raise NotImplementedError

    def monitor(self) -> dict[str, float]:
        """Values for the log, measured by rank 0 alone on the present weights without changing anything."""
        return {}

    def warnings(self) -> Sequence[str]:
        """Sentences for the user before the first step."""
        return ()

    def record(self) -> dict[str, Any]:
        """Entries for run.json."""
        return {}
