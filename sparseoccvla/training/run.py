"""`sparseoccvla train`: from a command to a finished stage."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch

from sparseoccvla.data.cache import CacheConfig, SampleCache
from sparseoccvla.data.cache_build import open_cache
from sparseoccvla.data.tables import Tables
from sparseoccvla.encoder import Encoder
from sparseoccvla.errors import InputError
from sparseoccvla.model import ModelConfig, read_config
from sparseoccvla.runtime.manifest import find_model
from sparseoccvla.training.batches import SceneBatch, SceneLoader, made_ahead, places_of_step
from sparseoccvla.training.config import TrainingConfig
from sparseoccvla.training.encoder_stage import EncoderTask
from sparseoccvla.training.loop import Length, Loop, make_accelerator
from sparseoccvla.training.occupancy_check import OccupancyCheck

STAGES = ("teacher", "encoder", "planning", "joint")


class Run:
    """What all stages of a run share.

    Args:
        config: of the run.
        dataroot: in nuScenes format.
        version: needed when the root has several.
        cache: folder for caches of the splits, made when there are none.
        out: folder of the run.
    """

    def __init__(
        self, config: TrainingConfig, dataroot: Path, version: str | None, cache: Path, out: Path
    ) -> None:
        self.config, self.dataroot, self.out = config, dataroot, out
        self.model = model_config(config.model)
        self._tables = Tables(dataroot, version)
        self._cache = cache
        out.mkdir(parents=True, exist_ok=True)
        (out / "training.json").write_text(json.dumps(asdict(config), indent=1) + "\n")

    @property
    def precision(self) -> torch.dtype:
        return torch.bfloat16 if self.config.precision == "bf16" else torch.float32

    def split(self, name: str) -> SampleCache:
        """The samples of a split."""
        height, width = self.model.encoder.image_size_px
        wanted = CacheConfig(height_px=height, width_px=width)
        return open_cache(self._tables, name, wanted, self._cache / name, threads=self.config.threads)


def model_config(name: str) -> ModelConfig:
    """Sizes from a JSON file, or from the config.json of a model folder or name."""
    path = Path(name)
    return read_config(path if path.suffix == ".json" else find_model(name) / "config.json")


def train_encoder(run: Run, length: Length) -> None:
    """Train stage `encoder`, or go on with it."""
    config, stage = run.config, run.config.encoder
    accelerator = make_accelerator(config)
    torch.manual_seed(config.seed)
    encoder = Encoder(run.model.encoder)
    cache = run.split(config.train_split)
    loader = SceneLoader(
        cache,
        run.dataroot,
        encoder.config.frames,
        encoder.config.backbone.strides[0],
        encoder.config.repeat_history,
        stage.augmentation,
        config.seed,
    )
    process, processes = accelerator.process_index, accelerator.num_processes

    def make(step: int) -> SceneBatch:
        places = places_of_step(step, stage.schedule.batch, len(cache), config.seed, process, processes)
        return loader.batch(places).to(accelerator.device)

    check = OccupancyCheck(
        run.split(config.validation_split), config.validation_samples, encoder, run.precision
    )
    task = EncoderTask(encoder, stage, config.seed, check)
    loop = Loop(
        "encoder",
        task,
        lambda first: made_ahead(make, first, config.threads),
        stage.schedule,
        config,
        length,
        run.out,
        accelerator,
    )
    loop.run()


def train(stage: str, run: Run, length: Length) -> None:
    """Train a stage.

    Raises:
        InputError: no such stage, or what it builds on is not there.
    """
    match stage:
        case "encoder":
            train_encoder(run, length)
        case _:
            raise InputError(f"--stage is {stage!r}, wanted one of {', '.join(STAGES)}")
