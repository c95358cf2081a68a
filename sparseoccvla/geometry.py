"""Rigid transforms and planar poses. Quaternions are (x, y, z, w), as ROS has them.

nuScenes stores (w, x, y, z); its loader reorders at its own border.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation


def matrix_from_pose(translation_m: ArrayLike, quaternion_xyzw: ArrayLike) -> NDArray[np.float64]:
    """4x4 `parent_from_child` of a child's translation (3,) and unit quaternion (4,) in the parent.

    Raises:
        ValueError: the quaternion has zero length, as an unset ROS message has.
    """
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_quat(np.asarray(quaternion_xyzw, float)).as_matrix()
    matrix[:3, 3] = translation_m
    return matrix


def pose_from_matrix(matrix: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Translation (3,) and quaternion (x, y, z, w) of a 4x4 rigid transform."""
    return matrix[:3, 3].astype(float), Rotation.from_matrix(matrix[:3, :3]).as_quat()


def inverse(matrix: NDArray[np.floating]) -> NDArray[np.float64]:
    """Inverse of a rigid (..., 4, 4) transform, exact in its last row."""
    rotation = np.swapaxes(matrix[..., :3, :3], -1, -2)
    result = np.zeros(matrix.shape)
    result[..., :3, :3] = rotation
    result[..., :3, 3] = -(rotation @ matrix[..., :3, 3:])[..., 0]
    result[..., 3, 3] = 1
    return result


def transform(a_from_b: NDArray[np.floating], points_b_m: NDArray[np.floating]) -> NDArray[np.floating]:
    """Points (..., 3) of frame b in frame a."""
    return points_b_m @ a_from_b[:3, :3].T + a_from_b[:3, 3]


def yaw_of(matrix: NDArray[np.floating]) -> float:
    """Heading in radians of the x axis of a 4x4 transform, seen from above."""
    return float(np.arctan2(matrix[1, 0], matrix[0, 0]))


def wrap_angle(angle_rad: ArrayLike) -> NDArray[np.float64]:
    """Angles in [-pi, pi)."""
    return (np.asarray(angle_rad, float) + np.pi) % (2 * np.pi) - np.pi


def planar_pose(matrix: NDArray[np.floating]) -> NDArray[np.float64]:
    """(x_m, y_m, yaw_rad) of a 4x4 transform."""
    return np.array([matrix[0, 3], matrix[1, 3], yaw_of(matrix)])


def planar_matrix(x_m: float, y_m: float, yaw_rad: float) -> NDArray[np.float64]:
    """4x4 transform of a pose on the ground plane."""
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(yaw_rad), -np.sin(yaw_rad)], [np.sin(yaw_rad), np.cos(yaw_rad)]]
    matrix[:2, 3] = x_m, y_m
    return matrix


def arc_pose(length_m: ArrayLike, turn_rad: ArrayLike) -> NDArray[np.float64]:
    """Poses (..., 3) at the end of arcs that start at the origin along x; exact for straight ones too.

    Args:
        length_m: driven along the arc, negative backwards.
        turn_rad: change of heading on the way, counter-clockwise.
    """
    length, turn = np.broadcast_arrays(np.asarray(length_m, float), np.asarray(turn_rad, float))
    chord = length * np.sinc(turn / (2 * np.pi))  # numpy's sinc(x) is sin(pi x) / (pi x)
    return np.stack([chord * np.cos(turn / 2), chord * np.sin(turn / 2), turn], axis=-1)


def headings_along(points_m: NDArray[np.floating], least_step_m: float = 0.05) -> NDArray[np.float64]:
    """Tangent headings (..., S) of paths (..., S, 2) that start at the origin heading along x.

    A step shorter than `least_step_m` keeps the heading before it: the direction of a standing
    vehicle is not the direction of its noise.
    """
    start = np.zeros_like(points_m[..., :1, :])
    steps = np.diff(np.concatenate([start, points_m], axis=-2), axis=-2)
    moved = np.linalg.norm(steps, axis=-1) >= least_step_m
    heading = np.arctan2(steps[..., 1], steps[..., 0])
    last = np.zeros(heading.shape[:-1])
    result = np.empty(heading.shape)
    for step in range(heading.shape[-1]):
        last = np.where(moved[..., step], heading[..., step], last)
        result[..., step] = last
    return result


class PoseError(LookupError):
    """No pose can be had for the asked time; the text says the available span."""


@dataclass(frozen=True)
class PoseTrack:
    """Poses over time in one fixed frame, interpolated: linear in translation, slerp in rotation.

    `stamps_ns` is strictly increasing, `fixed_from_base` has one 4x4 for each stamp.
    """

    stamps_ns: tuple[int, ...]
    fixed_from_base: tuple[NDArray[np.float64], ...]

    def at(self, stamp_ns: int, max_extrapolation_s: float = 0.0) -> tuple[NDArray[np.float64], float]:
        """`fixed_from_base` at `stamp_ns` and by how many seconds it was extrapolated.

        Outside the track the motion of the two nearest poses is continued, at most
        `max_extrapolation_s`.

        Raises:
            PoseError: the track is empty, or the stamp lies farther outside.
        """
        stamps = self.stamps_ns
        if not stamps:
            raise PoseError(f"no pose at all, wanted one at {stamp_ns} ns; is odometry published?")
        beyond_s = max(stamps[0] - stamp_ns, stamp_ns - stamps[-1], 0) / 1e9
        if beyond_s > max_extrapolation_s:
            raise PoseError(
                f"no pose at {stamp_ns} ns: odometry covers {stamps[0]} to {stamps[-1]} ns, "
                f"{beyond_s:.3f} s short, at most {max_extrapolation_s:g} s is extrapolated"
            )
        if len(stamps) == 1:
            return self.fixed_from_base[0], beyond_s
        after = min(max(bisect_left(stamps, stamp_ns), 1), len(stamps) - 1)
        before = after - 1
        return (
            interpolate(
                self.fixed_from_base[before],
                self.fixed_from_base[after],
                (stamp_ns - stamps[before]) / (stamps[after] - stamps[before]),
            ),
            beyond_s,
        )


def interpolate(
    start: NDArray[np.floating], end: NDArray[np.floating], fraction: float
) -> NDArray[np.float64]:
    """The rigid 4x4 at `fraction` of the way; outside [0, 1] the same motion is continued."""
    turn = Rotation.from_matrix(end[:3, :3] @ start[:3, :3].T).as_rotvec() * fraction
    result = np.eye(4)
    result[:3, :3] = Rotation.from_rotvec(turn).as_matrix() @ start[:3, :3]
    result[:3, 3] = start[:3, 3] + fraction * (end[:3, 3] - start[:3, 3])
    return result
