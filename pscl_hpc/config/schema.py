"""The configuration of a run, as typed models. Every key has its meaning under it.

Two kinds exist, told apart by ``kind``: :class:`PretrainConfig` and :class:`FinetuneConfig`. Checks that need
one file alone happen here, at construction; checks that need the archive happen when it is opened.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pscl_hpc.config.common import (
    Count,
    Fraction,
    NonNegative,
    Positive,
    Size,
    Strict,
    check_folder,
    check_window,
)
from pscl_hpc.config.methods import MethodConfig, PsclSimclrConfig, ReferencedMethod


class ModelConfig(Strict):
    """The U-Net trunk (Sci. Rep. 2025, doi 10.1038/s41598-025-32855-5, figure 2)."""

    in_channels: Literal[1, 3] = 1
    """1: grey. 3: colour, or grey replicated."""
    widths: tuple[Count, ...] = (32, 64, 128, 256)
    """Feature channels from full resolution down to the bottleneck; each step halves the grid."""
    mean: tuple[float, ...] = (0.5,)
    """Subtracted from the input in 0..1; one value, or one per channel."""
    std: tuple[Positive, ...] = (0.25,)
    """The input is divided by it; one value, or one per channel."""

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if len(self.widths) < 2:
            raise ValueError("widths needs at least two entries, one scale and the bottleneck")
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.in_channels):
                raise ValueError(f"{key} needs 1 or {self.in_channels} values, it has {len(values)}")
        return self


class DataConfig(Strict):
    """Which images of which archive."""

    archive: str
    """An archive file, or a folder of shards; relative paths start at the working directory."""
    datasets: tuple[str, ...] | None = None
    """Collections to use; all when absent."""
    splits: tuple[str, ...] = ("train", "")
    """Splits to use; the empty name stands for images without one."""
    exclude_specimens: tuple[str, ...] = ()
    """Specimens left out."""


class JitterConfig(Strict):
    """Intensity changes, drawn anew for each image and view."""

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
    noise: NonNegative = 0.0
    """Standard deviation, at most, of added white noise; 0 as released."""
    blur: NonNegative = 0.0
    """Standard deviation, at most, in pixels of a Gaussian blur; 0 as released."""
    probability: Fraction = 0.8
    """Share of images that are changed."""


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
    """How long, and how the learning rate goes."""

    steps: Count = 1000
    """Optimiser steps."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """The learning rate rises linearly over these steps."""
    decay: Literal["constant", "cosine"] = "constant"
    """constant as released, or cosine: half a cosine that would reach zero just after the last step."""


class OptimiserConfig(Strict):
    """Optimiser and learning rate."""

    name: Literal["adam", "adamw", "lars"] = "adam"
    lr: Positive = 1e-4
    """Learning rate; of the decoder and the head in fine-tuning."""
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    """How ``lr`` grows with ``batch_size``: times batch_size / lr_base_batch, or times its square root."""
    lr_base_batch: Count = 256
    """The batch that ``lr`` was chosen for, where ``lr_scaling`` is not none."""
    weight_decay: NonNegative = 0.0
    """Decay of weights, never of biases and normalisation. adamw takes it off the weights; adam and lars add it to the
    gradient."""
    momentum: Fraction = 0.9
    """Momentum of lars."""
    clip_norm: NonNegative = 0.0
    """Gradients are scaled down to this norm; 0 turns it off."""


class RuntimeConfig(Strict):
    """What does not change the result's meaning, only where and how fast it is computed."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast of the network; losses stay in fp32."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of torch; 0 leaves torch's choice."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Reading processes; 0 reads in the training process."""
    kernels: Literal["auto", "reference", "chunked", "triton"] = "auto"
    """Backend of the contrastive losses; patches are matched by the best one that the device has."""
    sync_batchnorm: bool = True
    """Batch normalisation over the images of all ranks, as one rank with all images would have it (pretraining)."""
    activation_checkpointing: bool = False
    """Keep no activations inside the U-Net's blocks: they are computed again in the backward pass (pretraining)."""
    init_timeout_s: Positive = 1800.0
    """How long the ranks wait for each other at the start."""
    collective_timeout_s: Positive = 300.0
    """Seconds without a sign of life or progress from a rank, after which the job ends and names it. Longer than the
    longest step, checkpoint and export."""


class CheckpointConfig(Strict):
    """When the state is saved, and how much is kept."""

    every_steps: Count = 200
    """A checkpoint every so many steps, and after the last."""
    every_minutes: NonNegative = 0.0
    """Also a checkpoint when this much time has passed since the last one; 0 turns it off (pretraining)."""
    keep: Count = 2
    """The newest checkpoints kept."""
    keep_best: bool = True
    """Also keep the checkpoint with the lowest smoothed loss among those of ``every_steps`` (pretraining)."""


class LogConfig(Strict):
    """What is written while running."""

    every_steps: Count = 10
    """A line in metrics.jsonl every so many steps."""
    similarity: bool = True
    """Log positive and hardest-negative similarity of each scale."""
    purity: bool = True
    """Log the share of sampled patches whose mask has the template's class, where masks are known."""
    tensorboard: bool = False
    """Also write TensorBoard events (extra ``tensorboard``)."""

    def keeps(self, term: str) -> bool:
        """Whether a method's term, such as ``scale0/purity``, is written."""
        kind = term.rpartition("/")[2]
        return {"positive": self.similarity, "negative": self.similarity, "purity": self.purity}.get(
            kind, True
        )


class RunConfig(Strict):
    """Keys that both kinds share."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """Names the run and its folder."""
    run: str = ""
    """The run folder; empty makes a new one, ``runs/<name>-<time>``. An unfinished run of the same
    configuration goes on."""
    seed: Annotated[int, Field(ge=0)] = 10
    """Same configuration and seed, same numbers (CPU)."""

    @field_validator("run")
    @classmethod
    def _expanded(cls, value: str) -> str:
        return check_folder("run", value)


class PretrainConfig(RunConfig):
    """Pretraining of the trunk on unlabelled images."""

    kind: Literal["pretrain"] = "pretrain"
    data: DataConfig
    model: ModelConfig = ModelConfig()
    views: ViewConfig = ViewConfig()
    method: MethodConfig = PsclSimclrConfig()
    batch_size: Count = 8
    """Unlabelled images per step, over all ranks; references come on top."""
    accumulate: Count = 1
    """Forward passes per step, each on an equal part of the batch with its own negatives."""
    schedule: ScheduleConfig = ScheduleConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _consistent(self) -> PretrainConfig:
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of accumulate ({self.accumulate})"
            )
        self.method.check(widths=self.model.widths)
        if self.batch_size // self.accumulate < self.method.smallest_batch:
            raise ValueError(
                f"batch_size / accumulate must be at least {self.method.smallest_batch} for {self.method.name}: "
                "an image alone has no negatives"
            )
        images = self.batch_size // self.accumulate
        if isinstance(self.method, ReferencedMethod) and self.method.reference.ids:
            images += self.method.reference.per_batch
        check_window("views.size", self.views.size, len(self.model.widths) - 1, images)
        return self


class FinetuneLossConfig(Strict):
    """Cross entropy plus Dice."""

    ce_weight: NonNegative = 0.5
    dice_weight: NonNegative = 0.5
    class_weights: Literal["uniform", "balanced"] | tuple[NonNegative, ...] = "balanced"
    """Weights of the cross entropy: one per class, or balanced: by the inverse root of each class's share of the
    annotated pixels, at most 10."""

    @model_validator(mode="after")
    def _consistent(self) -> FinetuneLossConfig:
        if self.ce_weight + self.dice_weight == 0:
            raise ValueError("ce_weight and dice_weight are both 0: nothing would be learnt")
        weights = self.class_weights
        if not isinstance(weights, str) and not any(weights) and not self.dice_weight:
            raise ValueError("class_weights are all 0 and so is dice_weight: nothing would be learnt")
        return self


class SemiSupervisedConfig(Strict):
    """Cross-consistency of two decoders on annotated and unlabelled images (IDEAL, figure 2b)."""

    name: Literal["ideal"] = "ideal"
    datasets: tuple[str, ...] | None = None
    """Collections of the unlabelled images; that of the references when absent."""
    splits: tuple[str, ...] | None = None
    """Their splits; ``data.splits`` when absent. Validation and test splits are refused."""
    batch_size: Count = 4
    """Unlabelled windows per step, on top of the annotated ones."""
    weight: NonNegative = 1.0
    """Weight of the consistency once it has risen."""
    ramp: Fraction = 0.4
    """Share of the steps over which the weight rises; 0: whole from the start."""
    threshold: Fraction = 0.8
    """A pixel whose most probable class is at least so probable to one decoder teaches the other."""


class FinetuneConfig(RunConfig):
    """Fine-tuning of trunk and segmentation head on the annotated images."""

    kind: Literal["finetune"] = "finetune"
    data: DataConfig
    references: tuple[str, ...]
    """Annotated images to train on, ``dataset/stem``, all of one collection."""
    square: Annotated[int, Field(ge=0)] = 0
    """Side in pixels of the one square of each reference whose annotation is used, as if the rest was never annotated;
    0: all of it. It is the square that shows the most classes."""
    pretrained: str = ""
    """A pretraining run folder or its trunk.safetensors; empty starts from random weights."""
    model: ModelConfig = ModelConfig()
    """Used from scratch only; a pretrained trunk brings its own."""
    crop: Size = (160, 160)
    """Random windows trained on."""
    batch_size: Count = 4
    """Windows per step."""
    jitter: JitterConfig = JitterConfig(brightness=0.08, contrast=0.08, saturation=0.08, hue=0.02)
    flip: bool = True
    """Windows are flipped at random."""
    rotate: bool = True
    """Windows are turned by a random multiple of 90 degrees."""
    loss: FinetuneLossConfig = FinetuneLossConfig()
    semi_supervised: SemiSupervisedConfig | None = None
    """Also learn from unlabelled images; absent: from the annotated ones alone."""
    schedule: ScheduleConfig = ScheduleConfig(steps=300)
    optimiser: OptimiserConfig = OptimiserConfig(lr=1e-3)
    encoder_lr_scale: NonNegative = 0.1
    """A pretrained encoder learns at this share of ``optimiser.lr``; one from scratch at the whole of it."""
    validation_split: str = "val"
    """The split that chooses the checkpoint; the test split never does."""
    validate_every: Count = 50
    """Steps between validations; the best mean Dice is kept. The last step always validates."""
    runtime: RuntimeConfig = RuntimeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    @field_validator("references")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("references names no annotated image; fine-tuning needs at least one")
        # Named twice is named once: scores would else be told of two annotated images.
        return tuple(dict.fromkeys(value))

    @model_validator(mode="after")
    def _fits(self) -> FinetuneConfig:
        if not self.pretrained:
            self.check_depth(len(self.model.widths) - 1)
        return self

    def check_depth(self, scales: int) -> None:
        """Raise ValueError where a trunk that halves its grid ``scales`` times does not fit the windows."""
        mixed = self.semi_supervised.batch_size if self.semi_supervised else 0
        check_window("crop", self.crop, scales, self.batch_size + mixed)
