"""CAN bus records of nuScenes: measured motion and steering, where a scene has them.

About two dozen scenes have no records at all and one lacks single kinds, so absence is an answer here
(None), damage an error.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import NS_PER_S
from sparseoccvla.data.tables import DataSetError

NS_PER_US = 1_000
# Steering wheel to road wheels; from speed, yaw rate and steering of real records (wheelbase 2.588 m).
STEERING_RATIO = 16.3
MAX_GAP_S = 0.1  # `pose` comes at 50 Hz; over a longer hole nothing is interpolated
MAX_STEERING_AGE_S = 0.6  # `vehicle_monitor` comes at 2 Hz


@dataclass(frozen=True)
class CanMotion:
    """Motion of base_link in base_link over time."""

    stamps_ns: NDArray[np.int64]  # (n,) strictly rising
    speed_mps: NDArray[np.float64]  # (n,) along x
    yaw_rate_radps: NDArray[np.float64]  # (n,) about z
    poses: NDArray[np.float64]  # (n, 3) x_m, y_m, yaw_rad in the global frame
    steering_ns: NDArray[np.int64]  # (m,) strictly rising
    steering_rad: NDArray[np.float64]  # (m,) angle of the road wheels, positive left

    def at(self, stamp_ns: int) -> tuple[float, float] | None:
        """(speed, yaw rate) at a time, None outside the records or in a hole of them."""
        after = int(np.searchsorted(self.stamps_ns, stamp_ns))
        if after < len(self.stamps_ns) and self.stamps_ns[after] == stamp_ns:
            return float(self.speed_mps[after]), float(self.yaw_rate_radps[after])
        if after in (0, len(self.stamps_ns)):
            return None
        start, end = (int(stamp) for stamp in self.stamps_ns[after - 1 : after + 1])
        if end - start > MAX_GAP_S * NS_PER_S:
            return None
        weight = (stamp_ns - start) / (end - start)
        speed, rate = (
            float((1 - weight) * values[after - 1] + weight * values[after])
            for values in (self.speed_mps, self.yaw_rate_radps)
        )
        return speed, rate

    def steering_at(self, stamp_ns: int) -> float | None:
        """The newest steering not after a time, None if there is none or it is old."""
        newest = int(np.searchsorted(self.steering_ns, stamp_ns, side="right")) - 1
        if newest < 0 or stamp_ns - self.steering_ns[newest] > MAX_STEERING_AGE_S * NS_PER_S:
            return None
        return float(self.steering_rad[newest])


def read_motion(dataroot: Path, scene: str) -> CanMotion | None:
    """Motion of a scene from its `pose` messages (50 Hz), None where the data set has none of them.

    Steering is that of `steeranglefeedback` (100 Hz), else of `vehicle_monitor` (2 Hz), else unknown; both
    speak of the steering wheel.

    Raises:
        DataSetError: a file is damaged.
    """
    pose = _read(dataroot, scene, "pose", "utime, vel, rotation_rate, pos and orientation", _pose_numbers)
    if pose is None or not len(pose[0]):
        return None
    stamps_ns, values = pose
    steering = (
        _read(dataroot, scene, "steeranglefeedback", "utime and value", lambda row: [row["value"]])
        or _read(
            dataroot,
            scene,
            "vehicle_monitor",
            "utime and steering",
            lambda row: [np.deg2rad(row["steering"])],
        )
        or (np.zeros(0, np.int64), np.zeros((0, 1)))
    )
    return CanMotion(
        stamps_ns, values[:, 0], values[:, 1], values[:, 2:], steering[0], steering[1][:, 0] / STEERING_RATIO
    )


def _pose_numbers(row: Any) -> list[float]:
    w, _, _, z = row["orientation"]
    return [row["vel"][0], row["rotation_rate"][2], *row["pos"][:2], 2 * np.arctan2(z, w)]


def _read(
    dataroot: Path, scene: str, kind: str, wanted: str, numbers: Callable[[Any], list[float]]
) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
    """Rising stamps (n,) and numbers (n, k) of the messages of a kind; None where there is no such file."""
    file = dataroot / "can_bus" / f"{scene}_{kind}.json"
    if not file.exists():
        return None
    try:
        rows = json.loads(file.read_bytes())
        values = np.array([numbers(row) for row in rows], float)
        stamps = [int(row["utime"]) * NS_PER_US for row in rows]
    except (ValueError, TypeError, LookupError) as error:
        raise DataSetError(
            f"{file} is damaged ({error}); wanted a list of {kind} messages with {wanted}. Unpack the CAN "
            "bus expansion again, or move the file away to do without"
        ) from error
    stamps_ns, order = np.unique(np.array(stamps, np.int64), return_index=True)
    return stamps_ns, values[order]
