"""Settings of training: one file, one part for each stage. A default is written here and nowhere else.

The defaults train the paper's sizes on GPUs; `config/train/tiny.json` overrides what two CPU cores need.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from sparseoccvla.config import Checked, ConfigError, from_mapping, setting
from sparseoccvla.data.augment import AugmentationConfig
from sparseoccvla.training.losses import OccupancyLossConfig


@dataclass(frozen=True)
class ScheduleConfig(Checked):
    """How a stage's weights move. AdamW, linear warm-up, then half a cosine to `last_rate`."""

    batch: int = setting(8, "Samples in one step, over all processes.", low=1, high=4096)
    steps: int = setting(100_000, "Steps, where neither --steps nor --minutes is given.", low=1)
    learning_rate: float = setting(2e-4, "At the end of warm-up.", low=0.0, high=1.0)
    last_rate: float = setting(0.01, "Share of it that is left at the end.", low=0.0, high=1.0)
    pretrained_rate: float = setting(0.1, "Factor for weights that came trained from elsewhere.", low=0.0)
    warmup_steps: int = setting(500, "Steps of linear warm-up.", low=0)
    weight_decay: float = setting(0.01, "Of AdamW, for matrices and kernels only.", low=0.0)
    clip_norm: float = setting(35.0, "Largest norm of the gradient.", low=1e-6)


@dataclass(frozen=True)
class TeacherTraining(Checked):
    """Stage `teacher`: a small CLIP to distill from, for minutes on a CPU; see `EncoderTraining.teacher`."""

    schedule: ScheduleConfig = field(
        default_factory=lambda: ScheduleConfig(steps=2000, learning_rate=1e-3, warmup_steps=60)
    )
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    crops: int = setting(8, "Of each keyframe in a step.", low=1, high=64)
    crop_px: int = setting(64, "Side that crops are resized to.", unit="px", low=16, high=448)
    patch_px: int = setting(8, "Side of a patch, a divisor of crop_px.", unit="px", low=4, high=32)
    width: int = setting(128, "Of both sides and of the space they share.", low=8, high=1024)
    heads: int = setting(4, "Of attention, a divisor of width.", low=1, high=16)
    layers: int = setting(4, "Of the picture side.", low=1, high=24)
    text_layers: int = setting(2, "Of the text side.", low=1, high=24)
    text_tokens: int = setting(24, "Longest caption.", low=8, high=77)
    vocabulary: int = setting(512, "Of the captions' tokenizer.", low=300, high=65536)


@dataclass(frozen=True)
class PixelTraining(Checked):
    """First part of stage `encoder`: the backbone and the 2-D head alone."""

    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    share: float = setting(
        0.0, "Of the stage's minutes or steps; for a backbone that comes untrained.", low=0.0, high=0.9
    )


@dataclass(frozen=True)
class EncoderTraining(Checked):
    """Stage `encoder`: occupancy."""

    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    pixels: PixelTraining = field(default_factory=PixelTraining)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    losses: OccupancyLossConfig = field(default_factory=OccupancyLossConfig)
    clustered_points: bool = setting(
        False, "Start learned queries on clusters of visible voxels, not anywhere in the grid."
    )
    start_spread_m: float = setting(
        0.0, "How far apart the points of a query start; z a quarter.", unit="m", low=0.0, high=10.0
    )
    last_layer_points: int = setting(
        0, "Points of each query of the last layer whose class is learned in a step; 0: all.", low=0
    )
    teacher: str = setting("", "Folder or hub name of a CLIP to distill from; empty: none.")
    distillation: str = setting(
        "normalized", "How: with a LayerNorm on both sides, or raw.", choices=("normalized", "raw")
    )
    distillation_weight: float = setting(1.0, "Of the distillation.", low=0.0)
    auxiliary_weight: float = setting(1.0, "Of the 2-D head's class and depth.", low=0.0)
    initial_weight: float = setting(1.0, "Of the loss of the initial points.", low=0.0)
    earlier_layer_weight: float = setting(1.0, "Of the layers before the last.", low=0.0)


@dataclass(frozen=True)
class DrivingTraining(Checked):
    """What reasoner, forecaster and planner learn, in the stages `planning` and `joint`."""

    occupancy: OccupancyLossConfig = field(default_factory=OccupancyLossConfig)
    spoken_share: float = setting(
        1.0,
        "Of the planned keyframes, those that the language model sees in a step; the rest is planned without "
        "T_r, at a fraction of the cost.",
        low=0.0,
        high=1.0,
    )
    questions: int = setting(8, "Asked about each keyframe in a step; they share the scene.", low=0, high=64)
    turned_share: float = setting(
        0.0,
        "Of questions, those begun at another of their words: a small language model of few wordings else "
        "answers the order of words, not what they ask.",
        low=0.0,
        high=1.0,
    )
    sight_share: float = setting(
        0.3, "Of keyframes drawn from those between a hazard's appearing and the driver's reacting.",
        low=0.0, high=1.0,
    )  # fmt: skip
    edited_share: float = setting(
        0.0,
        "Of keyframes in stage planning, those whose pictures `world edit` painted again: without a hazard, "
        "where the driver goes on otherwise though it has moved alike so far, or in another look.",
        low=0.0,
        high=1.0,
    )
    null_share: float = setting(0.15, "Of keyframes planned without T_r.", low=0.0, high=1.0)
    stale_share: float = setting(
        0.35, "Of keyframes planned with the T_r of an earlier one.", low=0.0, high=1.0
    )
    stale_frames: int = setting(2, "How many keyframes earlier at most.", low=1, high=8)
    forecast_samples: int = setting(4, "Keyframes of a step whose future is learned.", low=0)
    forecast_columns: int = setting(0, "Points of each query that are forecast in a step; 0: all.", low=0)
    text_weight: float = setting(1.0, "Of answers.", low=0.0)
    score_weight: float = setting(1.0, "Of anchor scores.", low=0.0)
    path_weight: float = setting(1.0, "Of the path's steps.", low=0.0)
    forecast_weight: float = setting(1.0, "Of the forecast.", low=0.0)
    own_start_share: float = setting(
        0.0,
        "Of paths, those learned from an anchor that the scorer draws instead of the nearest one: where it "
        "errs, the way back is learned too.",
        low=0.0,
        high=1.0,
    )
    blurred_share: float = setting(
        0.0,
        "Of the numbers of queries that the planner is given, those that are dropped; few keyframes else are "
        "learned by heart, and pictures make plans worse.",
        low=0.0,
        high=0.9,
    )
    blind_share: float = setting(0.0, "Of keyframes planned with empty queries.", low=0.0, high=1.0)
    anchors: str = setting(
        "kmeans", "kmeans: of the training paths; model: the model's.", choices=("kmeans", "model")
    )
    vocabulary: int = setting(
        1536, "Of a tokenizer trained for a language model built from sizes.", low=300, high=65536
    )


@dataclass(frozen=True)
class PlanningTraining(Checked):
    """Stage `planning`: everything behind a frozen encoder, whose queries are computed once."""

    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    driving: DrivingTraining = field(default_factory=DrivingTraining)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    variants: int = setting(2, "Views of each keyframe, the first as it is driven.", low=1, high=64)


@dataclass(frozen=True)
class PlannerTraining(Checked):
    """Stage `planner`: the planner alone, from where stage `planning` left it, on draws of that one."""

    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)


@dataclass(frozen=True)
class JointTraining(Checked):
    """Stage `joint`: everything, so that planner and language model reach the encoder."""

    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    encoder_weight: float = setting(1.0, "Of all terms of the encoder's own stage.", low=0.0)


@dataclass(frozen=True)
class TrainingConfig(Checked):
    """Everything about a training run but its data, its place and its length."""

    model: str = setting(
        "nuscenes_r50_vicuna7b",
        "Model folder or name whose sizes, tokenizer and anchors are taken; or a JSON file of sizes, named "
        "from the folder of the settings.",
    )
    seed: int = setting(0, "Of weights, order, augmentation and draws.", low=0)
    precision: str = setting("bf16", "Of autocast; coordinates stay fp32.", choices=("bf16", "fp32"))
    threads: int = setting(
        2, "Threads of torch, of loading and of neighbor search on a CPU.", low=1, high=256
    )
    train_split: str = setting("train", "Scenes to learn from.")
    validation_split: str = setting("val", "Scenes to look at on the way.")
    validation_samples: int = setting(32, "How many of them, evenly spread.", low=1)
    validate_minutes: float = setting(4.0, "Between validations.", unit="min", low=0.0)
    checkpoint_minutes: float = setting(2.0, "Between checkpoints.", unit="min", low=0.0)
    log_steps: int = setting(20, "Steps between lines of the log.", low=1)
    validation_texts: int = setting(16, "Answers written out in a validation.", low=0)
    teacher: TeacherTraining = field(default_factory=TeacherTraining)
    encoder: EncoderTraining = field(default_factory=EncoderTraining)
    planning: PlanningTraining = field(default_factory=PlanningTraining)
    planner: PlannerTraining = field(default_factory=PlannerTraining)
    joint: JointTraining = field(default_factory=JointTraining)


def read_training_config(path: Path) -> TrainingConfig:
    """The settings of a JSON file; keys left out keep the default.

    Raises:
        ConfigError: no file, not JSON, an unknown key, a value of another type or out of range.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(
            f"can't read the training configuration {path} ({error.strerror}); config/train/ has some"
        ) from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    config: TrainingConfig = from_mapping(TrainingConfig, content, str(path))
    if config.model.endswith(".json"):
        config = replace(config, model=str(path.parent / config.model))
    return config
