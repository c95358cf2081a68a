"""Where the vehicle went: the waypoints that a plan made at t0 is compared with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import NS_PER_S, NUM_STEPS, STEP_S
from sparseoccvla.geometry import PoseTrack, inverse, planar_pose


def future_poses(track: PoseTrack, t0_ns: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Poses (S, 3) x y yaw in base_link at t0, at t0 + (i + 1) * 0.5 s, and whether each is known (S,).

    t0 is a camera's stamp; the ego pose is interpolated there and at every step, never taken from the
    nearest keyframe: at 10 m/s the 35 ms between CAM_FRONT and the lidar are 0.35 m.
    """
    base_from_fixed = inverse(track.at(t0_ns)[0])
    poses = np.zeros((NUM_STEPS, 3))
    valid = np.zeros(NUM_STEPS, bool)
    for step in range(NUM_STEPS):
        stamp_ns = t0_ns + round((step + 1) * STEP_S * NS_PER_S)
        if stamp_ns > track.stamps_ns[-1]:
            break
        poses[step] = planar_pose(base_from_fixed @ track.at(stamp_ns)[0])
        valid[step] = True
    return poses, valid
