"""What the frozen encoder says about every keyframe, computed once and mapped into memory.

A folder of plain arrays: `features.npy` (n, V, Q, C) and `points.npy` (n, V, Q, R, 3), fp16, where variant
0 is the keyframe as it is driven and the others are augmented pictures of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparseoccvla.data.augment import AugmentationConfig
from sparseoccvla.data.cache import SampleCache
from sparseoccvla.data.output import new_folder
from sparseoccvla.encoder import Encoder
from sparseoccvla.training.batches import NetworkInputs, network_inputs

_MANIFEST = "tokens.json"
_BATCH = 4


class TokenCache:
    """Queries of every keyframe of a split."""

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


def open_tokens(
    folder: Path,
    cache: SampleCache,
    encoder: Encoder,
    variants: int,
    augmentation: AugmentationConfig,
    precision: torch.dtype,
    seed: int,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> TokenCache:
    """The tokens of a split at `folder`, made first if there are none of this encoder.

    Args:
        folder: of the tokens.
        cache: of the split.
        encoder: frozen.
        variants: how many views of each keyframe, the first without augmentation.
        augmentation: of the others.
        precision: of autocast.
        seed: of the augmentation.
        progress: keyframes done, keyframes in all.
    """
    identity = {
        "encoder": weights_digest(encoder),
        "samples": cache.tokens,
        "variants": variants,
        "seed": seed,
    }
    manifest = folder / _MANIFEST
    if manifest.exists() and json.loads(manifest.read_text()) == identity:
        return TokenCache(folder)
    config = encoder.config
    shape = (len(cache), variants, config.queries)
    with new_folder(folder, lambda old: (old / _MANIFEST).exists()) as work:
        features = np.lib.format.open_memmap(work / "features.npy", "w+", np.float16, (*shape, config.width))
        points_m = np.lib.format.open_memmap(
            work / "points.npy", "w+", np.float16, (*shape, config.points[-1], 3)
        )
        for start in range(0, len(cache), _BATCH):
            indices = range(start, min(start + _BATCH, len(cache)))
            for variant in range(variants):
                inputs = [_inputs(cache, index, variant, encoder, augmentation, seed) for index in indices]
                said = queries_of(encoder, inputs, precision)
                features[start : start + len(inputs), variant] = said[0].numpy()
                points_m[start : start + len(inputs), variant] = said[1].numpy()
            progress(indices[-1] + 1, len(cache))
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


def _inputs(
    cache: SampleCache,
    index: int,
    variant: int,
    encoder: Encoder,
    augmentation: AugmentationConfig,
    seed: int,
) -> NetworkInputs:
    rng = np.random.default_rng([seed, index, variant, 3])
    chosen = augmentation if variant else None
    history = cache.history(index, encoder.config.frames, chosen, rng)
    return network_inputs(history, encoder.config.repeat_history)


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
