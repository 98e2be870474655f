"""Sections that several tasks share, and the keys that every run has.

Each key has its meaning under it. Checks that need one file alone happen here, at construction; checks that need the
archive happen when it is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pscl_hpc.config.strict import Count, Fraction, NonNegative, Positive, Size, Strict, check_folder


class DataConfig(Strict):
    """Which images of which archive."""

    archive: str
    """An archive file, or a folder of shards; relative paths start at the working directory."""
    datasets: tuple[str, ...] | None = None
    """Collections to use; all when absent."""
    splits: tuple[str, ...] = ("train", "")
    """Splits to use; the empty name stands for images without one."""
    exclude_specimens: tuple[str, ...] = ()
    """Specimens that are left out."""


class JitterConfig(Strict):
    """Random intensity changes, drawn for each image and view."""

    brightness: NonNegative = 0.16
    """The image is multiplied by U(1 - b, 1 + b)."""
    contrast: NonNegative = 0.16
    """Distance from the mean level is multiplied by U(1 - c, 1 + c)."""
    saturation: NonNegative = 0.16
    """Distance from grey is multiplied by U(1 - s, 1 + s); nothing happens to a grey image."""
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.04
    """Hue is turned by U(-h, h) of a full turn; nothing happens to a grey image."""
    gamma: NonNegative = 0.0
    """The image is raised to exp(U(-g, g)); 0 as released."""
    shading: NonNegative = 0.0
    """Difference in brightness, at most, between opposite edges: a linear ramp in a random direction is added."""
    noise: NonNegative = 0.0
    """Standard deviation, at most, of added white noise; 0 as released."""
    noise_share: Fraction = 1.0
    """Share of the changed images that get noise."""
    blur: NonNegative = 0.0
    """Standard deviation, at most, in pixels of a Gaussian blur; 0 as released."""
    blur_share: Fraction = 1.0
    """Share of the changed images that are blurred."""
    probability: Fraction = 0.8
    """Probability that an image is changed."""


class ViewConfig(Strict):
    """How two views of an image are made."""

    size: Size = (376, 376)
    """Pixels cut from the archive for each image; smaller images are mirrored at their edges."""
    flip: bool = True
    """The second view is flipped upside down with probability 1/2."""
    rotate: bool = True
    """The second view is turned by a multiple of 90 degrees."""
    crop: Annotated[float, Field(ge=0.0, lt=0.9)] = 0.2
    """The second view keeps 1 - U(0, crop) of the height and, independently, of the width."""
    jitter: JitterConfig = JitterConfig()
    """Intensity changes, drawn independently for both views."""


class ScheduleConfig(Strict):
    """Number of steps and learning-rate schedule."""

    steps: Annotated[int, Field(ge=0)] = 1000
    """Optimiser steps; 0: as many as fit into ``minutes``."""
    minutes: NonNegative = 0.0
    """In place of ``steps``: minutes from reading the archive to the last step. The number of steps follows from the time
    of a few steps, measured at the first start, and is recorded in run.json; a resumed run keeps it."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """The learning rate rises linearly over these steps; with ``minutes`` over at most a tenth of the steps."""
    decay: Literal["constant", "cosine"] = "constant"
    """constant as released, or cosine: half a cosine that would reach zero just after the last step."""

    @model_validator(mode="before")
    @classmethod
    def _minutes_alone(cls, tree: Any) -> Any:
        if isinstance(tree, Mapping) and tree.get("minutes") and "steps" not in tree:
            return {**tree, "steps": 0}
        return tree

    @model_validator(mode="after")
    def _one_of_them(self) -> ScheduleConfig:
        if self.steps and self.minutes:
            raise ValueError("steps and minutes are both given; leave one of them out")
        if not self.steps and not self.minutes:
            raise ValueError("steps is 0 and minutes is not given; give one of them")
        return self


class OptimiserConfig(Strict):
    """Optimiser and learning rate."""

    name: Literal["adam", "adamw"] = "adam"
    lr: Positive = 1e-4
    """Learning rate; in fine-tuning that of the decoder and the classifier."""
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    """How ``lr`` grows with ``batch_size``: times batch_size / lr_base_batch, or times its square root."""
    lr_base_batch: Count = 256
    """The batch size that ``lr`` was chosen for, where ``lr_scaling`` is not none."""
    weight_decay: NonNegative = 0.0
    """Decay of weights, never of biases and normalisation. adamw: decoupled; adam: added to the gradient."""
    clip_norm: NonNegative = 0.0
    """Gradients are scaled down to this norm; 0 turns it off."""


class RuntimeConfig(Strict):
    """Where and how fast the run is computed; the meaning of the result does not change."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU where there is one."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """bf16: autocast of the network; losses stay in fp32. auto: bf16 on a GPU that supports it and on a CPU where it is
    faster, which is measured at the first start and recorded in run.json; a resumed run keeps it."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of torch. 0: one for each CPU that the process may use, at most OMP_NUM_THREADS, which is cpus-per-task
    in a Slurm job; recorded in run.json, and a resumed run keeps it. Their number changes the rounding."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Data-loading processes per rank; 0 loads in the training process."""
    sync_batchnorm: bool = True
    """Batch normalisation over the images of all ranks, as a single rank with all images would have it."""
    activation_checkpointing: bool = False
    """Keep no activations inside the trunk's blocks: they are computed again in the backward pass."""
    init_timeout_s: Positive = 1800.0
    """How long the ranks wait for each other at the start, in seconds."""
    collective_timeout_s: Positive = 300.0
    """Seconds without a heartbeat or progress from a rank after which the job ends and names it. Must be longer than
    the longest step, checkpoint and export."""


class CheckpointConfig(Strict):
    """When the state is saved, and how much is kept."""

    every_steps: Count = 200
    """A checkpoint every so many steps, and after the last."""
    every_minutes: NonNegative = 0.0
    """Also a checkpoint when this many minutes have passed since the last one; 0 turns it off."""
    keep: Count = 2
    """Number of newest checkpoints that are kept."""
    local: str = ""
    """Folder on a disk of the node, such as ``$TMPDIR``, to which checkpoints are written before they are copied to the run
    folder behind the training; for slow shared file systems. Empty: straight to the run folder."""


class LogConfig(Strict):
    """What is logged during training."""

    every_steps: Count = 10
    """A line in metrics.jsonl every so many steps."""
    tensorboard: bool = False
    """Also write TensorBoard events (extra ``tensorboard``)."""
    wandb: str = ""
    """Also log to this project of Weights & Biases (extra ``wandb``); empty: not."""
    mlflow: str = ""
    """Also log to the MLflow server or folder at this address, such as ``https://host`` or ``file:/scratch/me/mlruns``
    (extra ``mlflow``); empty: not."""

    def keeps(self, term: str) -> bool:
        """Whether a term, such as ``scale0/purity``, is logged."""
        return True


class RunConfig(Strict):
    """Keys that every kind of run has."""

    kind: str
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """Name of the run and of its folder."""
    run: str = ""
    """The run folder; empty makes a new one, ``runs/<name>-<time>``. An unfinished run of the same configuration is
    resumed."""
    seed: Annotated[int, Field(ge=0)] = 10
    """Same configuration and seed, same numbers (CPU)."""
    data: DataConfig
    runtime: RuntimeConfig = RuntimeConfig()
    log: LogConfig = LogConfig()

    def with_decisions(self, decided: Mapping[str, Any]) -> Self:
        """This configuration with what a run has decided at its start, by dotted key, where it is left open here."""
        found = {
            name: decided[key]
            for name, unset in (("precision", "auto"), ("threads", 0))
            if getattr(self.runtime, name) == unset and (key := f"runtime.{name}") in decided
        }
        return self.model_copy(update={"runtime": self.runtime.model_copy(update=found)}) if found else self

    @field_validator("run")
    @classmethod
    def _expanded(cls, value: str) -> str:
        return check_folder("run", value)


class TrainingConfig(RunConfig):
    """Keys of every run of the training loop."""

    batch_size: Count
    """Images or windows per step, over all ranks."""
    schedule: ScheduleConfig = ScheduleConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    def with_decisions(self, decided: Mapping[str, Any]) -> Self:
        """See :class:`RunConfig`."""
        config = super().with_decisions(decided)
        if self.schedule.steps or "schedule.steps" not in decided:
            return config
        steps = int(decided["schedule.steps"])
        warmup = min(self.schedule.warmup_steps, steps // 10)
        schedule = self.schedule.model_copy(update={"steps": steps, "minutes": 0.0, "warmup_steps": warmup})
        return config.model_copy(update={"schedule": schedule})
