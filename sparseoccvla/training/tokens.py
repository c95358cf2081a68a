"""What the frozen encoder says about every keyframe, computed once and mapped into memory.

A folder of plain arrays: `features.npy` (n, V, Q, C) and `points.npy` (n, V, Q, R, 3), fp16, where variant
0 is the keyframe as it is driven and the others are augmented pictures of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparseoccvla.data.augment import AugmentationConfig
from sparseoccvla.data.cache import SampleCache
from sparseoccvla.data.edits import EditedKeyframe, edited_sample
from sparseoccvla.data.output import new_folder
from sparseoccvla.encoder import Encoder, EncoderConfig
from sparseoccvla.training.batches import NetworkInputs, network_inputs

_MANIFEST = "tokens.json"
_BATCH = 4


class TokenCache:
    """Queries of every keyframe of a split, or of every edited one."""

    def __init__(self, folder: Path) -> None:
        self._features = np.load(folder / "features.npy", mmap_mode="r")
        self._points_m = np.load(folder / "points.npy", mmap_mode="r")
        self.variants = int(self._features.shape[1])

    def __len__(self) -> int:
        return len(self._features)

    def __call__(self, index: int, variant: int = 0) -> tuple[Tensor, Tensor]:
        """Q_L (Q, C) and P_L (Q, R, 3) of a keyframe."""
        return (
            torch.from_numpy(np.array(self._features[index, variant], np.float32)),
            torch.from_numpy(np.array(self._points_m[index, variant], np.float32)),
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
    }
    manifest = folder / _MANIFEST
    if manifest.exists() and json.loads(manifest.read_text()) == identity:
        return TokenCache(folder)
    config = encoder.config
    count = len(views.names)
    shape = (count, views.variants, config.queries)
    with new_folder(folder, lambda old: (old / _MANIFEST).exists()) as work:
        features = np.lib.format.open_memmap(work / "features.npy", "w+", np.float16, (*shape, config.width))
        points_m = np.lib.format.open_memmap(
            work / "points.npy", "w+", np.float16, (*shape, config.points[-1], 3)
        )
        for start in range(0, count, _BATCH):
            indices = range(start, min(start + _BATCH, count))
            for variant in range(views.variants):
                said = queries_of(encoder, [views.inputs(index, variant) for index in indices], precision)
                features[start : indices.stop, variant] = said[0].numpy()
                points_m[start : indices.stop, variant] = said[1].numpy()
        features.flush()
        points_m.flush()
        (work / _MANIFEST).write_text(json.dumps(identity))
    return TokenCache(folder)


@torch.no_grad()
def queries_of(
    encoder: Encoder, inputs: list[NetworkInputs], precision: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Q_L (B, Q, C) and P_L (B, Q, R, 3) of samples, on the CPU; the encoder is in evaluation mode."""
    device = encoder.initial_points.device
    stacked = NetworkInputs(*(torch.stack(part).to(device) for part in zip(*inputs, strict=True)))
    with torch.autocast(device.type, precision, precision != torch.float32):
        decoded = encoder(
            stacked.images_rgb.float(), stacked.image_from_base, stacked.base_from_image, stacked.valid
        )
    return decoded.features.float().cpu(), decoded.points_m[-1].float().cpu()


class QueriesOf:
    """Queries of a keyframe by an encoder that may change from call to call.

    Args:
        cache: of the split.
        encoder: asked in evaluation mode.
        precision: of autocast.
    """

    def __init__(self, cache: SampleCache, encoder: Encoder, precision: torch.dtype) -> None:
        self._cache, self._encoder, self._precision = cache, encoder, precision

    def __call__(self, index: int) -> tuple[Tensor, Tensor]:
        """Q_L (Q, C) and P_L (Q, R, 3)."""
        config = self._encoder.config
        history = self._cache.history(index, config.frames)
        inputs = network_inputs(history, config.repeat_history)
        features, points_m = queries_of(self._encoder, [inputs], self._precision)
        return features[0], points_m[0]


def weights_digest(net: torch.nn.Module) -> str:
    """12 hex digits that stand for the weights of a network."""
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
