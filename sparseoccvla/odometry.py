"""The buffer of vehicle poses: the pose of any recent moment, and whether the poses can be trusted."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.config import OdometryConfig
from sparseoccvla.contracts import NS_PER_S, ContractError, EgoState, check_array
from sparseoccvla.counters import Counters
from sparseoccvla.ego_state import EgoHistory, MotionSample, pose_between
from sparseoccvla.geometry import PoseError, inverse, yaw_of

# What a vehicle may do between two samples without the twist of either showing it.
_UNSEEN_ACCELERATION_MPS2 = 8.0


@dataclass(frozen=True)
class OdometryCounters(Counters):
    """What came, and how often a pose had to be stretched or refused."""

    PREFIX: ClassVar[str] = "odometry"

    samples: int = 0
    duplicate: int = 0
    out_of_order: int = 0
    time_jumps: int = 0
    pose_jumps: int = 0
    resets: int = 0  # jumps and those asked for
    extrapolated: int = 0  # poses outside the samples, within the limit
    refused: int = 0  # poses that could not be had
    longest_extrapolation_s: float = 0.0


class OdometryBuffer:
    """Samples of the last `buffer_s`, in the odom frame."""

    def __init__(self, config: OdometryConfig) -> None:
        self.config = config
        self.samples: list[MotionSample] = []  # by rising stamp
        self.last_reset_reason = ""
        self._count: Counter[str] = Counter()
        self._longest_extrapolation_s = 0.0

    @property
    def counters(self) -> OdometryCounters:
        """A snapshot."""
        return OdometryCounters(**self._count, longest_extrapolation_s=self._longest_extrapolation_s)

    @property
    def latest(self) -> MotionSample | None:
        return self.samples[-1] if self.samples else None

    def add(
        self,
        stamp_ns: int,
        odom_from_base: NDArray[np.float64],
        speed_mps: float,
        yaw_rate_radps: float,
        steering_rad: float | None = None,
    ) -> str:
        """Take a sample; returns why whatever was built from earlier poses must be cleared, or "".

        Args:
            stamp_ns: of the message.
            odom_from_base: (4, 4) rigid, meters.
            speed_mps: twist along x of base_link.
            yaw_rate_radps: twist about z of base_link.
            steering_rad: road-wheel angle, positive left, where known.

        Raises:
            ContractError: something is not finite or the matrix is no 4x4.
        """
        check_array("odom_from_base", odom_from_base, (4, 4), "f")
        if not np.isfinite([speed_mps, yaw_rate_radps, steering_rad or 0.0]).all():
            raise ContractError(
                f"odometry has speed {speed_mps} m/s, yaw rate {yaw_rate_radps} rad/s, steering "
                f"{steering_rad}, wanted finite numbers"
            )
        sample = MotionSample(stamp_ns, odom_from_base, speed_mps, yaw_rate_radps, steering_rad)
        self._count["samples"] += 1
        newest = self.latest
        if newest is None or stamp_ns > newest.stamp_ns:
            reason = self._pose_jump(newest, sample) if newest else ""
        elif newest.stamp_ns - stamp_ns > self.config.time_jump_s * NS_PER_S:
            self._count["time_jumps"] += 1
            reason = f"odometry jumped back in time by {(newest.stamp_ns - stamp_ns) / NS_PER_S:.3f} s"
        else:
            self._insert(sample)
            return ""
        if reason:
            self.clear(reason)
        self.samples.append(sample)
        oldest_ns = stamp_ns - round(self.config.buffer_s * NS_PER_S)
        del self.samples[: bisect_left(self.samples, oldest_ns, key=lambda kept: kept.stamp_ns)]
        return reason

    def clear(self, reason: str) -> None:
        """Forget every sample."""
        self._count["resets"] += 1
        self.last_reset_reason = reason
        self.samples.clear()

    def covers(self, stamp_ns: int) -> bool:
        """True if the pose at `stamp_ns` needs no sample that is still to come."""
        return bool(self.samples) and self.samples[-1].stamp_ns >= stamp_ns

    def pose(self, stamp_ns: int) -> NDArray[np.float64]:
        """`odom_from_base` (4, 4) at a stamp; bounded extrapolation is counted.

        Raises:
            PoseError: no odometry, too far outside it, or in a hole of it.
        """
        try:
            pose, beyond_s = pose_between(self.samples, stamp_ns, self.config)
        except PoseError:
            self._count["refused"] += 1
            raise
        self._count["extrapolated"] += beyond_s > 0
        self._longest_extrapolation_s = max(self._longest_extrapolation_s, beyond_s)
        return pose

    def ego_state(self, t0_ns: int) -> EgoState:
        """The vehicle's motion at t0 from samples not after it."""
        return EgoHistory(self.samples, self.config).at(t0_ns)

    def age_s(self, now_ns: int) -> float:
        """Age of the newest sample by the node's clock; infinite without one."""
        return (now_ns - self.samples[-1].stamp_ns) / NS_PER_S if self.samples else float("inf")

    def latest_ego_state(self, now_ns: int) -> EgoState | None:
        """The motion at the newest sample, or None once odometry is lost."""
        if self.age_s(now_ns) > self.config.max_age_s:
            return None
        return self.ego_state(self.samples[-1].stamp_ns)

    def _insert(self, sample: MotionSample) -> None:
        place = bisect_left(self.samples, sample.stamp_ns, key=lambda kept: kept.stamp_ns)
        if self.samples[place].stamp_ns == sample.stamp_ns:
            self._count["duplicate"] += 1
            return
        self._count["out_of_order"] += 1
        self.samples.insert(place, sample)

    def _pose_jump(self, before: MotionSample, after: MotionSample) -> str:
        """Why `after` can't be where the twists of both lead from `before`; "" if it can."""
        elapsed_s = (after.stamp_ns - before.stamp_ns) / NS_PER_S
        mean = MotionSample(
            before.stamp_ns,
            before.odom_from_base,
            (before.speed_mps + after.speed_mps) / 2,
            (before.yaw_rate_radps + after.yaw_rate_radps) / 2,
        )
        error = inverse(mean.pose_at(after.stamp_ns)) @ after.odom_from_base
        error_m, error_rad = float(np.hypot(*error[:2, 3])), abs(yaw_of(error))
        allowed_m = self.config.jump_m + _UNSEEN_ACCELERATION_MPS2 * elapsed_s**2 / 2
        if error_m <= allowed_m and error_rad <= self.config.jump_rad:
            return ""
        self._count["pose_jumps"] += 1
        return (
            f"odometry jumped by {error_m:.2f} m and {error_rad:.2f} rad from where its twist leads "
            f"in {elapsed_s:.3f} s"
        )
