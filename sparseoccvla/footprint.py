"""How much memory a model takes, part by part, before anything of it is loaded.

Weights are counted from networks built without storage; the language model from the sizes its
configuration states. What a GPU runtime keeps for itself is an allowance, said as such.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import nn

from sparseoccvla.encoder import Encoder, EncoderConfig
from sparseoccvla.errors import InputError
from sparseoccvla.language import LanguageConfig
from sparseoccvla.model import ModelConfig
from sparseoccvla.planner import Planner
from sparseoccvla.reasoner import Reasoner, ReasonerConfig

GIB = 1 << 30
PROFILES_GIB = {"16gb": 16, "24gb": 24, "48gb": 48}
# CUDA context, workspaces and fragmentation of one process: an assumption, not a measurement.
_ALLOWANCE = int(0.6 * GIB)
_TEXT_TOKENS = 512  # longest question and answer that the cache is counted for
_FP32 = 4


@dataclass(frozen=True)
class Part:
    """One line of the account."""

    name: str
    stage: str  # "encoder", "reasoner", "planner" or "runtime"
    size_bytes: int


def footprint(config: ModelConfig, reasoner: bool = True) -> list[Part]:
    """What inference of a model takes; `reasoner` False leaves the language model out."""
    with torch.device("meta"):
        encoder, planner = Encoder(config.encoder), Planner(config.planner)
    parts = [
        Part("weights of backbone and decoder (fp32)", "encoder", _weights(encoder)),
        # Twice: in the memory of past sets, and put together for the decoder.
        Part(
            f"feature maps of {config.encoder.frames} frames, twice (fp32)",
            "encoder",
            2 * feature_bytes(config.encoder),
        ),
        Part("largest moment of the decoder (fp32)", "encoder", _decoder_bytes(config.encoder)),
    ]
    if reasoner:
        parts += _reasoner_parts(config.reasoner, config.encoder.queries)
    parts += [
        Part("weights of scorer and diffusion (fp32)", "planner", _weights(planner)),
        Part("allowance for the GPU runtime of each process", "runtime", (2 + reasoner) * _ALLOWANCE),
    ]
    return parts


def check_fits(parts: list[Part], profile: str) -> None:
    """Raise `InputError` when the parts are more than a profile has.

    Raises:
        InputError: too large, or a profile nobody knows; the text says what would fit.
    """
    if profile not in PROFILES_GIB:
        raise InputError(f"profile is {profile!r}, wanted one of {', '.join(PROFILES_GIB)}")
    total = sum(part.size_bytes for part in parts)
    if total > PROFILES_GIB[profile] * GIB:
        largest = max(parts, key=lambda part: part.size_bytes)
        rest = sum(part.size_bytes for part in parts if part.stage != "reasoner")
        raise InputError(
            f"the model takes {total / GIB:.1f} GiB, profile {profile} has {PROFILES_GIB[profile]} GiB; "
            f"the largest part is {largest.name} with {largest.size_bytes / GIB:.1f} GiB. Nothing was "
            "loaded. Take a larger profile, a smaller language model, or run with reasoner:=off "
            f"({rest / GIB:.1f} GiB)"
        )


def feature_bytes(config: EncoderConfig) -> int:
    """Stacked maps of the frames that one decoding reads."""
    height, width = config.image_size_px
    cells = sum((math.ceil(height / s) + 2) * math.ceil(width / s) for s in config.backbone.strides)
    return _FP32 * config.frames * config.cameras * config.width * cells


def language_bytes(config: LanguageConfig) -> int:
    """Weights of the language model, frozen part and adapters."""
    word = config.vocabulary * config.width * (1 if config.tied else 2)
    layer = 4 * config.width**2 + 3 * config.width * config.ffn_width + 2 * config.width
    frozen = word + config.layers * layer + config.width
    adapters = config.layers * len(config.lora_targets) * 2 * config.width * config.lora_rank
    return frozen * _dtype_bytes(config) + adapters * _FP32


def _reasoner_parts(config: ReasonerConfig, queries: int) -> list[Part]:
    language = config.language
    # A language model of one layer without storage: what is left are connector and forecaster.
    small = replace(language, path="", layers=1, lora_rank=0, vocabulary=8)
    with torch.device("meta"):
        around = Reasoner(replace(config, language=small))
    own = _weights(around) - _weights(around.language)
    length = (config.pooled_tokens or queries) + config.global_tokens + _TEXT_TOKENS
    cache = 2 * language.layers * length * language.width * _dtype_bytes(language)
    return [
        Part(f"language model ({language.dtype})", "reasoner", language_bytes(language)),
        Part("connector, global tokens and forecaster (fp32)", "reasoner", own),
        Part(f"key-value cache of {length} tokens ({language.dtype})", "reasoner", cache),
    ]


def _decoder_bytes(config: EncoderConfig) -> int:
    """Samples, generated matrices and mixed samples of one layer live together."""
    places = config.groups * config.frames * config.sampling_points
    channels = config.width // config.groups
    generated = config.groups * (channels**2 + config.frames * config.sampling_points * config.mixing_points)
    mixed = config.mixing_points * config.width
    return _FP32 * config.queries * (2 * places * channels + generated + mixed)


def _weights(net: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in net.parameters())


def _dtype_bytes(config: LanguageConfig) -> int:
    dtype: torch.dtype = getattr(torch, config.dtype)
    return dtype.itemsize
