"""Poses of things on the ground as six numbers: x, y, z in meters, yaw, pitch, roll in radians."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Array = NDArray[np.float64]


def matrices_of(poses: Array) -> Array:
    """4x4 `world_from_thing` (..., 4, 4) of poses (..., 6).

    Rotations are yaw, then pitch, then roll about the turned axes z, y, x.
    """
    flat = np.asarray(poses, float).reshape(-1, 6)
    result = np.tile(np.eye(4), (len(flat), 1, 1))
    if len(flat):
        result[:, :3, :3] = Rotation.from_euler("ZYX", flat[:, 3:]).as_matrix()
    result[:, :3, 3] = flat[:, :3]
    return result.reshape(*poses.shape[:-1], 4, 4)
