"""Random resize, crop, mirror and color of training pictures.

Geometry is drawn as a `Fit`, so that the matrix that enters the projection is the one that moved the
pixels: a mirrored picture is a picture of the same world by another camera, and labels stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from sparseoccvla.config import Checked, setting
from sparseoccvla.images import Fit, fit


@dataclass(frozen=True)
class AugmentationConfig(Checked):
    """How far training pictures stray. The defaults of geometry are those of OPUS (0.38-0.55 for 0.44)."""

    zoom_low: float = setting(0.864, "Smallest resize, relative to that of driving.", low=0.1, high=1.0)
    zoom_high: float = setting(1.25, "Largest resize, relative to that of driving.", low=1.0, high=4.0)
    mirror: bool = setting(True, "Mirror half of the pictures.")
    brightness: float = setting(0.15, "Largest change of brightness, of full scale.", low=0.0, high=1.0)
    contrast: float = setting(
        0.25, "Largest change of contrast, 0.25: times 0.75 to 1.25.", low=0.0, high=0.9
    )
    saturation: float = setting(0.3, "Largest change of saturation.", low=0.0, high=1.0)
    history_jitter_s: float = setting(
        0.1,
        "Farthest a history frame is aimed beside its time; matters where sweeps are loaded.",
        unit="s",
        low=0.0,
        high=0.25,
    )


def random_fit(
    source_px: tuple[int, int], size_px: tuple[int, int], config: AugmentationConfig, rng: np.random.Generator
) -> Fit:
    """A `Fit` near the one of driving: zoomed, its rows cut above, its columns where chance has it."""
    plain = fit(source_px, size_px)
    zoom = rng.uniform(config.zoom_low, config.zoom_high)
    height, width = (round(side * zoom) for side in plain.resized_px)
    spare_columns = width - size_px[1]
    left = round(rng.uniform(min(spare_columns, 0), max(spare_columns, 0)))
    return Fit(
        source_px,
        (height, width),
        (height - size_px[0], left),
        size_px,
        mirror=bool(config.mirror and rng.random() < 0.5),
    )


def random_jitter(frames: int, config: AugmentationConfig, rng: np.random.Generator) -> list[float]:
    """Seconds for each of T history frames, for `memory.select_history`."""
    return [float(value) for value in rng.uniform(-1, 1, frames) * config.history_jitter_s]


def random_color(
    rgb: NDArray[np.uint8], config: AugmentationConfig, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """The picture (H, W, 3) with another brightness, contrast and saturation."""
    gain = 1 + rng.uniform(-config.contrast, config.contrast)
    offset = 255 * rng.uniform(-config.brightness, config.brightness) + 127.5 * (1 - gain)
    keep = 1 + rng.uniform(-config.saturation, config.saturation)
    # One 3x4 matrix: towards or away from gray, then gain and offset.
    gray = np.array([0.299, 0.587, 0.114])
    mix = gain * (keep * np.eye(3) + (1 - keep) * gray)
    matrix = np.hstack([mix, np.full((3, 1), offset)])
    return cv2.transform(rgb, matrix).astype(np.uint8, copy=False)
