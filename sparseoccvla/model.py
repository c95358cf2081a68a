"""The whole model: one configuration, and the three stages as one module for joint training."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import nn

from sparseoccvla.config import from_mapping
from sparseoccvla.encoder import Encoder, EncoderConfig
from sparseoccvla.errors import InputError
from sparseoccvla.planner import Planner, PlannerConfig
from sparseoccvla.reasoner import Reasoner, ReasonerConfig


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of all networks; a model folder's config.json."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    reasoner: ReasonerConfig = field(default_factory=ReasonerConfig)
    planner: PlannerConfig = field(default_factory=PlannerConfig)


def read_config(path: Path) -> ModelConfig:
    """The configuration of a config.json; keys left out keep the default (the paper's size).

    Raises:
        InputError: not JSON, an unknown key, a value of another type, or widths that don't meet.
    """
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    config: ModelConfig = from_mapping(ModelConfig, content, str(path))
    width = config.encoder.width
    for stage in ("reasoner", "planner"):
        got = getattr(config, stage).query_width
        if got != width:
            raise InputError(f"{path}: {stage}.query_width is {got}, the encoder's width is {width}")
    if config.reasoner.pooled_tokens and config.reasoner.queries != config.encoder.queries:
        raise InputError(
            f"{path}: tokens of {config.reasoner.queries} reasoner.queries are pooled, the encoder has "
            f"{config.encoder.queries}; set both the same"
        )
    token = config.reasoner.language.width
    if config.planner.token_width != token:
        raise InputError(
            f"{path}: planner.token_width is {config.planner.token_width}, the language model is {token} wide"
        )
    return config


def write_config(path: Path, config: ModelConfig) -> None:
    """Write every value, defaults included: a later default must not change a stored model."""
    path.write_text(json.dumps(asdict(config), indent=1) + "\n")


class SparseOccVLA(nn.Module):
    """Encoder, reasoner and planner side by side, for training and for counting."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.encoder)
        self.reasoner = Reasoner(config.reasoner)
        self.planner = Planner(config.planner)
