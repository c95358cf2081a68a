"""CAN bus records of nuScenes: measured speed and yaw rate, where a scene has them.

About two dozen scenes have no records at all and one lacks single kinds, so absence is an answer here
(None), damage an error.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import NS_PER_S
from sparseoccvla.data.tables import DataSetError

NS_PER_US = 1_000
# Steering wheel to road wheels; from speed, yaw rate and steering of real records (wheelbase 2.588 m).
STEERING_RATIO = 16.3
MAX_GAP_S = 0.1  # `pose` comes at 50 Hz; over a longer hole nothing is interpolated


@dataclass(frozen=True)
class CanMotion:
    """Motion of base_link in base_link over time."""

    stamps_ns: NDArray[np.int64]  # (n,) strictly rising
    speed_mps: NDArray[np.float64]  # (n,) along x
    yaw_rate_radps: NDArray[np.float64]  # (n,) about z

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


def read_motion(dataroot: Path, scene: str) -> CanMotion | None:
    """The `pose` messages (50 Hz) of a scene, None where the data set has no file of them.

    Raises:
        DataSetError: the file is damaged.
    """
    file = dataroot / "can_bus" / f"{scene}_pose.json"
    if not file.exists():
        return None
    try:
        rows = json.loads(file.read_bytes())
        values = np.array(
            [[row["utime"], row["vel"][0], row["rotation_rate"][2]] for row in rows], float
        ).reshape(-1, 3)
    except (ValueError, TypeError, LookupError) as error:
        raise DataSetError(
            f"{file} is damaged ({error}); wanted a list of pose messages with utime, vel and "
            "rotation_rate. Unpack the CAN bus expansion again, or move the file away to do without"
        ) from error
    stamps_ns, order = np.unique([int(row["utime"]) * NS_PER_US for row in rows], return_index=True)
    return CanMotion(stamps_ns, values[order, 1], values[order, 2]) if len(rows) else None
