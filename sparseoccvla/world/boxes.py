"""Rectangles on the plane: the exact test for two vehicles in one place."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def corners_m(poses: NDArray[np.floating], sizes_m: NDArray[np.floating]) -> Array:
    """Corners (..., 4, 2) of rectangles: centers and yaws (..., 3), lengths and widths (..., 2)."""
    signs = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2
    local = signs * np.asarray(sizes_m, float)[..., None, :2]
    c, s = np.cos(poses[..., 2])[..., None], np.sin(poses[..., 2])[..., None]
    x = poses[..., 0][..., None] + c * local[..., 0] - s * local[..., 1]
    y = poses[..., 1][..., None] + s * local[..., 0] + c * local[..., 1]
    return np.stack([x, y], axis=-1)


def clearance_m(
    pose: NDArray[np.floating],
    size_m: NDArray[np.floating],
    poses: NDArray[np.floating],
    sizes_m: NDArray[np.floating],
) -> Array:
    """How far apart (N,) one rectangle lies from N others along the best separating axis.

    Never more than the true distance, and negative exactly where the rectangles overlap.
    """
    if len(poses) == 0:
        return np.zeros(0)
    one = corners_m(np.asarray(pose, float), np.asarray(size_m, float))
    many = corners_m(np.asarray(poses, float), np.asarray(sizes_m, float))
    gaps = []
    for yaw in (np.full(len(poses), pose[2]), np.asarray(poses)[:, 2]):
        for axis in (
            np.stack([np.cos(yaw), np.sin(yaw)], axis=1),
            np.stack([-np.sin(yaw), np.cos(yaw)], axis=1),
        ):
            a = one @ axis.T  # (4, N)
            b = np.einsum("nki,ni->kn", many, axis)
            gaps.append(np.maximum(b.min(axis=0) - a.max(axis=0), a.min(axis=0) - b.max(axis=0)))
    return np.max(gaps, axis=0)
