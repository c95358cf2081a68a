"""What the frozen encoder says about every keyframe, computed once and mapped into memory.

A folder of plain arrays, one for each field of `Queries`, fp16 and bytes, for each keyframe (n) and variant
(V) of it: variant 0 is the keyframe as it is driven, the others are augmented pictures of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparseoccvla.data.augment import AugmentationConfig
from sparseoccvla.data.cache import SampleCache
from sparseoccvla.data.edits import EditedKeyframe, edited_sample
from sparseoccvla.data.output import new_folder
from sparseoccvla.encoder import Decoded, Encoder, EncoderConfig
from sparseoccvla.forecaster import Present
from sparseoccvla.training.batches import NetworkInputs, network_inputs

_MANIFEST = "tokens.json"
_BATCH = 4


class Queries(NamedTuple):
    """What the encoder says, of one keyframe or of a batch (B, ...)."""

    features: Tensor  # (Q, C) Q_L
    points_m: Tensor  # (Q, R, 3) P_L
    labels: Tensor  # (Q, R) int32, best class of each point
    scores: Tensor  # (Q, R) its score

    @classmethod
    def stack(cls, parts: Sequence[Queries]) -> Queries:
        """A batch of several."""
        return cls(*(torch.stack(part) for part in zip(*parts, strict=True)))

    def to(self, device: torch.device) -> Queries:
        """The queries on a device."""
        return Queries(*(part.to(device) for part in self))

    def present(self, columns: Tensor | None = None) -> Present:
        """What is forecast of a batch: all points of each query, or some."""
        parts = (self.points_m, self.labels, self.scores)
        return Present(*(parts if columns is None else (part[:, :, columns] for part in parts)))


_ARRAYS = {"features": np.float16, "points_m": np.float16, "labels": np.uint8, "scores": np.float16}
_TENSORS = {"features": np.float32, "points_m": np.float32, "labels": np.int32, "scores": np.float32}


class TokenCache:
    """Queries of every keyframe of a split, or of every edited one."""

    def __init__(self, folder: Path) -> None:
        self._arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
        self._count, self.variants = self._arrays["features"].shape[:2]

    def __len__(self) -> int:
        return self._count

    def __call__(self, index: int, variant: int = 0) -> Queries:
        """The queries of a keyframe."""
        return Queries(
            *(
                torch.from_numpy(np.array(self._arrays[name][index, variant], dtype))
                for name, dtype in _TENSORS.items()
            )
        )


@dataclass(frozen=True)
class Views:
    """Pictures whose tokens are wanted."""

    names: Sequence[str]  # of the keyframes; other names are other tokens
    variants: int  # how many views of each keyframe
    seed: int  # of the augmentation
    inputs: Callable[[int, int], NetworkInputs]  # of a keyframe and variant


def driven_views(
    cache: SampleCache, encoder: EncoderConfig, variants: int, augmentation: AugmentationConfig, seed: int
) -> Views:
    """Every keyframe of a split, first as it is driven, then augmented."""

    def inputs(index: int, variant: int) -> NetworkInputs:
        rng = np.random.default_rng([seed, index, variant, 3])
        history = cache.history(index, encoder.frames, augmentation if variant else None, rng)
        return network_inputs(history, encoder.repeat_history)

    return Views(cache.tokens, variants, seed, inputs)


def edited_views(
    cache: SampleCache, dataroot: Path, edits: Sequence[EditedKeyframe], encoder: EncoderConfig
) -> Views:
    """Every edited keyframe, without augmentation."""

    def inputs(index: int, _variant: int) -> NetworkInputs:
        sample = edited_sample(cache, dataroot, edits[index], encoder.frames)
        return network_inputs(sample.history, encoder.repeat_history)

    return Views([f"{edit.sample_token} {edit.edit}" for edit in edits], 1, 0, inputs)


def open_tokens(folder: Path, views: Views, encoder: Encoder, precision: torch.dtype) -> TokenCache:
    """The tokens of some views at `folder`, made first if there are none of this encoder.

    Args:
        folder: of the tokens.
        views: to be encoded.
        encoder: frozen.
        precision: of autocast.
    """
    identity = {
        "encoder": weights_digest(encoder),
        "samples": list(views.names),
        "variants": views.variants,
        "seed": views.seed,
        "arrays": list(_ARRAYS),
    }
    manifest = folder / _MANIFEST
    if manifest.exists() and json.loads(manifest.read_text()) == identity:
        return TokenCache(folder)
    config = encoder.config
    count = len(views.names)
    shape = (count, views.variants, config.queries)
    with new_folder(folder, lambda old: (old / _MANIFEST).exists()) as work:
        points = (*shape, config.points[-1])
        shapes = {"features": (*shape, config.width), "points_m": (*points, 3)}
        arrays = [
            np.lib.format.open_memmap(work / f"{name}.npy", "w+", dtype, shapes.get(name, points))
            for name, dtype in _ARRAYS.items()
        ]
        for start in range(0, count, _BATCH):
            indices = range(start, min(start + _BATCH, count))
            for variant in range(views.variants):
                said = queries_of(encoder, [views.inputs(index, variant) for index in indices], precision)
                for array, part in zip(arrays, said, strict=True):
                    array[start : indices.stop, variant] = part.numpy()
        for array in arrays:
            array.flush()
        (work / _MANIFEST).write_text(json.dumps(identity))
    return TokenCache(folder)


@torch.no_grad()
def queries_of(encoder: Encoder, inputs: list[NetworkInputs], precision: torch.dtype) -> Queries:
    """The queries of samples, on the CPU; the encoder is in evaluation mode."""
    device = encoder.initial_points.device
    stacked = NetworkInputs(*(torch.stack(part).to(device) for part in zip(*inputs, strict=True)))
    with torch.autocast(device.type, precision, precision != torch.float32):
        decoded = encoder(
            stacked.images_rgb.float(), stacked.image_from_base, stacked.base_from_image, stacked.valid
        )
    return said_by(encoder, decoded).to(torch.device("cpu"))


def said_by(encoder: Encoder, decoded: Decoded) -> Queries:
    """A batch of queries as the stages behind see them; classes pass no gradient."""
    present = Present.of(decoded.points_m[-1].float(), encoder.scores(decoded.logits[-1].float()))
    return Queries(decoded.features.float(), *present)


class QueriesOf:
    """Queries of a keyframe by an encoder that may change from call to call.

    Args:
        cache: of the split.
        encoder: asked in evaluation mode.
        precision: of autocast.
    """

    def __init__(self, cache: SampleCache, encoder: Encoder, precision: torch.dtype) -> None:
        self._cache, self._encoder, self._precision = cache, encoder, precision

    def __call__(self, index: int) -> Queries:
        """The queries of a keyframe, a batch of one."""
        config = self._encoder.config
        history = self._cache.history(index, config.frames)
        inputs = network_inputs(history, config.repeat_history)
        return queries_of(self._encoder, [inputs], self._precision)


def weights_digest(net: torch.nn.Module) -> str:
    """12 hex digits that stand for the weights of a network."""
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
