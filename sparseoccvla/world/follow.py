"""A controller that drives a planned trajectory: speed from its timing, steering from its shape."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import CubicHermiteSpline, CubicSpline

from sparseoccvla.contracts import NS_PER_S, NUM_STEPS, STEP_S, check_array
from sparseoccvla.geometry import wrap_angle, yaw_of
from sparseoccvla.world.drive import DT_S
from sparseoccvla.world.ego import WHEELBASE_M
from sparseoccvla.world.simulate import (
    MAX_ACCELERATION_MPS2,
    MAX_BRAKING_MPS2,
    Control,
    Simulation,
)

Array = NDArray[np.float64]

JERK_MPS3 = 10.0  # what brakes and engine do at most
_POSITION_GAIN_PER_S2 = 1.2
_SPEED_GAIN_PER_S = 2.2
_ALIGN_M = 3.0
_LEAST_STEP_M = 0.3  # waypoints nearer than this say nothing about the direction
_SEARCH_STEP_M = 0.1


class Follower:
    """Follows one plan; waypoint i is the pose of base_link at t0 + (i + 1) * STEP_S.

    The plan's way is a smooth curve through its waypoints that leaves the ego in the direction it heads, and
    goes on straight after the last. How far along it the ego should be is a smooth function of time that
    starts at the speed the ego had at t0: errors of place and speed ask for acceleration in proportion.
    Steering is the way's curvature, and more against an error of place or heading, so that it would die out
    over a few meters without overshoot.
    """

    def __init__(self, trajectory: NDArray[np.floating], t0_ns: int, world_from_t0: Array, speed_mps: float):
        """Take a plan (S, 3) x_m, y_m, yaw_rad in base_link at t0, `world_from_t0` (4, 4).

        Raises:
            ContractError: another shape, or values that are not finite.
        """
        check_array("trajectory", np.asarray(trajectory), (NUM_STEPS, 3), "f")
        self.t0_ns = t0_ns
        poses = np.concatenate([np.zeros((1, 3)), trajectory])
        steps = np.diff(poses[:, :2], axis=0)
        headings = (poses[1:, 2] + poses[:-1, 2]) / 2
        # Only what leads ahead counts: the noise of a standing vehicle's waypoints is no way to drive.
        lengths = np.linalg.norm(steps, axis=1)
        ahead = np.where((steps * _direction(headings)).sum(axis=1) > 0, lengths, 0.0)
        stations = np.concatenate([[0.0], np.cumsum(ahead)])
        self._profile = _profile(stations, speed_mps)
        flat = np.concatenate([poses[:, :2], np.zeros((len(poses), 1))], axis=1)
        points = (flat @ world_from_t0[:3, :3].T + world_from_t0[:3, 3])[:, :2]
        self._way = _Way.through(stations, points, yaw_of(world_from_t0))

    def control(self, sim: Simulation) -> Control:
        """What to do now."""
        station, aside, turned = self._way.locate(sim.ego_pose)
        t_s = min((sim.now_ns - self.t0_ns) / NS_PER_S, NUM_STEPS * STEP_S)
        place, speed = float(self._profile(t_s)), max(float(self._profile(t_s, 1)), 0.0)
        # A plan that starts at another speed than the ego's has impossible accelerations at first.
        planned = float(self._profile(t_s + DT_S / 2, 2))
        wanted = float(np.clip(planned, -MAX_BRAKING_MPS2, MAX_ACCELERATION_MPS2))
        wanted += _SPEED_GAIN_PER_S * (speed - sim.ego_v) + _POSITION_GAIN_PER_S2 * (place - station)
        reach = JERK_MPS3 * DT_S
        acceleration = float(np.clip(wanted, sim.ego_a - reach, sim.ego_a + reach))
        # Half of this step has been driven when its steering is felt.
        curvature = self._way.curvature_per_m(station + sim.ego_v * DT_S / 2)
        curvature -= aside / _ALIGN_M**2 + 2 * turned / _ALIGN_M
        return Control(acceleration, float(np.arctan(WHEELBASE_M * curvature)))


@dataclass(frozen=True)
class _Way:
    """A smooth curve; before its start and after its end it is straight."""

    curve: CubicSpline  # points (2,) of stations
    length_m: float

    @classmethod
    def through(cls, stations_m: Array, points_m: Array, yaw_rad: float) -> _Way:
        """Through points (K, 2) at stations (K,), the first of which is left in the direction `yaw_rad`."""
        apart = [0]
        for i in range(1, len(stations_m)):
            if stations_m[i] - stations_m[apart[-1]] >= _LEAST_STEP_M:
                apart.append(i)
        stations, points = stations_m[apart], points_m[apart]
        if len(apart) == 1:
            stations = np.array([0.0, _LEAST_STEP_M])
            points = points_m[0] + stations[:, None] * _direction(yaw_rad)
        # The last piece is an arc, of which only the first half second is ever driven.
        curve = CubicSpline(stations, points, bc_type=((1, _direction(yaw_rad)), (2, np.zeros(2))))
        return cls(curve, float(stations[-1]))

    def locate(self, pose: Array) -> tuple[float, float, float]:
        """Station of a pose (3,), how far to the left of the way it is, and by how much it is turned left."""
        stations = np.arange(0.0, self.length_m + _SEARCH_STEP_M, _SEARCH_STEP_M).clip(max=self.length_m)
        apart = np.linalg.norm(self.curve(stations) - pose[:2], axis=1)
        station = float(stations[apart.argmin()])
        tangent = self.curve(station, 1)
        tangent /= np.linalg.norm(tangent)
        x, y = pose[:2] - self.curve(station)
        along, aside = tangent[0] * x + tangent[1] * y, tangent[0] * y - tangent[1] * x
        turned = wrap_angle(pose[2] - np.arctan2(tangent[1], tangent[0]))
        turned -= self.curvature_per_m(station) * along
        return station + float(along), float(aside), float(turned)

    def curvature_per_m(self, station_m: float) -> float:
        if not 0 <= station_m <= self.length_m:
            return 0.0
        (dx, dy), (ddx, ddy) = self.curve(station_m, 1), self.curve(station_m, 2)
        return float((dx * ddy - dy * ddx) / (dx * dx + dy * dy) ** 1.5)


def _direction(yaw_rad: ArrayLike) -> Array:
    return np.stack([np.cos(yaw_rad), np.sin(yaw_rad)], axis=-1)


def _profile(stations_m: Array, speed_mps: float) -> CubicHermiteSpline:
    """Stations (S + 1,) at t0, t0 + STEP_S, ... as a smooth function of seconds, without going back."""
    slopes = np.diff(stations_m) / STEP_S
    speeds = np.concatenate([[speed_mps], (slopes[1:] + slopes[:-1]) / 2, slopes[-1:]])
    speeds[1:-1] = np.minimum(speeds[1:-1], 3 * np.minimum(slopes[1:], slopes[:-1]))
    times = STEP_S * np.arange(len(stations_m))
    return CubicHermiteSpline(times, stations_m, speeds)
