"""A small data set with occupancy, texts and pixels, and settings that train on it in seconds."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from sparseoccvla.backbone import BackboneConfig
from sparseoccvla.encoder import EncoderConfig
from sparseoccvla.language import LanguageConfig
from sparseoccvla.model import ModelConfig, write_config
from sparseoccvla.planner import PlannerConfig
from sparseoccvla.reasoner import ReasonerConfig
from sparseoccvla.training.config import (
    DrivingTraining,
    EncoderTraining,
    JointTraining,
    PlanningTraining,
    ScheduleConfig,
    TrainingConfig,
)
from sparseoccvla.training.losses import OccupancyLossConfig
from sparseoccvla.voxels import VoxelRule
from tests.nuscenes_root import make_root

SCENE = "scene-0001"
SIZE = (32, 64)
KEYFRAMES = 9

MODEL = ModelConfig(
    encoder=EncoderConfig(
        image_size_px=SIZE, frames=2,
        backbone=BackboneConfig("small", 8, (8, 16), (1, 1), 16),
        queries=8, width=16, groups=2, heads=2, sampling_points=2, mixing_points=4, ffn_width=16,
        points=(4, 32), offset_scale=2.0, dropout=0.0,
        voxel_rule=VoxelRule(0.1, 30.0, closing=False, flat_spread=0.5),
        free_class=True, least_spread_m=(2.0, 0.5),
        auxiliary_width=8, seeded_queries=4, lifted_points=True, point_class_width=8,
    ),
    reasoner=ReasonerConfig(
        query_width=16,
        language=LanguageConfig(
            width=32, layers=2, heads=2, ffn_width=48, vocabulary=320, tied=True, dtype="float32", lora_rank=0
        ),
        prompt_style="plain", forecast_point_width=8, forecast_free_class=True, forecast_from_present=True,
    ),
    planner=PlannerConfig(
        query_width=16, token_width=32, width=16, heads=2, ffn_width=16,
        score_with_ego=True, look_along_path=True,
    ),
)  # fmt: skip

_LOSSES = OccupancyLossConfig(drawn_points=128, standing_share=0.5, visible_share=0.75)
_DRIVING = DrivingTraining(
    occupancy=_LOSSES, questions=2, forecast_samples=2, forecast_columns=8, anchors="model", vocabulary=320
)
TRAINING = TrainingConfig(
    model="model.json",
    precision="fp32",
    threads=1,
    train_split="train",
    validation_split="val",
    validation_samples=2,
    validation_texts=1,
    log_steps=1,
    encoder=EncoderTraining(
        schedule=ScheduleConfig(batch=2, learning_rate=3e-3, warmup_steps=2),
        losses=_LOSSES, clustered_points=True, start_spread_m=1.0, last_layer_points=8,
    ),
    planning=PlanningTraining(
        schedule=ScheduleConfig(batch=2, learning_rate=3e-3, warmup_steps=2), driving=_DRIVING, variants=2
    ),
    joint=JointTraining(schedule=ScheduleConfig(batch=2, learning_rate=1e-3, warmup_steps=2)),
)  # fmt: skip


def make_training_root(root: Path, language: bool = True, pixels: bool = True) -> Path:
    """The drive of `nuscenes_root`, on a flat road among blocks that stand still in each frame."""
    make_root(root, keyframes=KEYFRAMES, sweeps=False)
    version = root / "v1.0-mini"
    (version / "splits.json").write_text(json.dumps({"train": [SCENE], "val": [SCENE]}))
    rng = np.random.default_rng(0)
    samples = json.loads((version / "sample.json").read_text())
    for number, sample in enumerate(samples):
        folder = root / "gts" / SCENE / sample["token"]
        folder.mkdir(parents=True)
        semantics = np.full((200, 200, 16), 17, np.uint8)
        semantics[:, :, 2] = 14
        semantics[:, 90:110, 2] = 11
        for x, y, kind in zip(*rng.integers(20, 180, (2, 6)), (4, 4, 10, 15, 15, 16), strict=True):
            semantics[x : x + 10, y : y + 5, 3:7] = kind
        seen = np.zeros_like(semantics)
        seen[50:150, 50:150] = 1
        np.savez_compressed(folder / "labels.npz", semantics=semantics, mask_lidar=seen, mask_camera=seen)
        if language:
            _say(root, sample["token"], number)
    if pixels:
        for row in json.loads((version / "sample_data.json").read_text()):
            if row["is_key_frame"] and row["fileformat"] == "jpg":
                _paint(root, row["filename"], rng)
    return root


def _say(root: Path, token: str, number: int) -> None:
    answer = "yes" if number % 2 else "no"
    texts = {
        "desc": {"description": f"There are {number} blocks.", "action": "keep speed"},
        "vqa": [
            {"question": "Is the number odd?", "answer": answer, "type": "count"},
            {"question": "What is there?", "answer": f"{number} blocks on a road."},
        ],
    }
    for kind, content in texts.items():
        folder = root / kind / "train"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{token}.json").write_text(json.dumps(content))


def _paint(root: Path, filename: str, rng: np.random.Generator) -> None:
    """Classes and depth of every tenth pixel of the 160 x 90 pictures."""
    _, channel, name = filename.split("/")
    classes = np.full((9, 16), 17, np.uint8)
    classes[3:] = 11  # edges away from where cells of 8 px have their center
    classes[3:7, 4:8] = rng.choice([4, 15])
    depth_cm = np.where(classes == 17, 0, 1200).astype(np.uint16)
    for kind, pixels in (("semantics", classes), ("depth", depth_cm)):
        folder = root / kind / channel
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name.replace(".jpg", ".png")), pixels)


def write_settings(folder: Path, model: ModelConfig = MODEL) -> TrainingConfig:
    """Settings whose model lies in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder / "model.json", model)
    return replace(TRAINING, model=str(folder / "model.json"))
