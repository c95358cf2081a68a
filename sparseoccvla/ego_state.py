"""The vehicle's own motion at t0, from samples that are not after t0.

One class for the live stack and the data loaders, so that a network is never trained on a state it
will not get. Peeking past t0 leaks the answer: the first public AD-MLP table held future waypoints
in place of velocity and acceleration, and the corrected one costs 0.06 m of L2 (AD-MLP issue 4).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.config import OdometryConfig
from sparseoccvla.contracts import NS_PER_S, NUM_COMMANDS, PAST_POSE_TIMES_S, Command, EgoState
from sparseoccvla.geometry import (
    PoseError,
    PoseTrack,
    arc_pose,
    inverse,
    planar_matrix,
    planar_pose,
    yaw_of,
)

SPEED_UNIT_MPS, ACCELERATION_UNIT_MPS2, YAW_RATE_UNIT_RADPS = 10.0, 3.0, 0.3  # of `ego_numbers`
MOTION_NUMBERS = 6  # of `ego_numbers`: those of the present
POSE_NUMBERS = 4  # those of each past pose
EGO_NUMBERS = MOTION_NUMBERS + POSE_NUMBERS * len(PAST_POSE_TIMES_S)


@dataclass(frozen=True, eq=False)
class MotionSample:
    """One odometry message, or one pose of a log. Twist is that of base_link, in base_link."""

    stamp_ns: int
    odom_from_base: NDArray[np.float64]  # (4, 4); any fixed frame does
    speed_mps: float  # along x, negative backwards
    yaw_rate_radps: float
    steering_rad: float | None = None  # road-wheel angle, positive left

    def pose_at(self, stamp_ns: int) -> NDArray[np.float64]:
        """(4, 4) pose at another time if the twist holds; planar motion from the sample's pose."""
        elapsed_s = (stamp_ns - self.stamp_ns) / NS_PER_S
        x, y, yaw = arc_pose(self.speed_mps * elapsed_s, self.yaw_rate_radps * elapsed_s)
        return self.odom_from_base @ planar_matrix(x, y, yaw)


@dataclass(frozen=True)
class EgoHistory:
    """Samples of one drive by rising stamp; `at` draws the ego state of any moment from them."""

    samples: Sequence[MotionSample]
    config: OdometryConfig = field(default_factory=OdometryConfig)

    def at(self, t0_ns: int) -> EgoState:
        """The motion at t0 as it could be known at t0.

        Speed is the newest sample's, carried to t0 with the acceleration. Acceleration is the median
        of all pairwise slopes (Theil-Sen) of the speeds of `acceleration_window_s`, which one wild
        speed in four can't move. Past poses are interpolated, never over a hole of more than
        `max_gap_s`; the pose at t0 is the newest sample's, carried on with its twist.

        `motion_valid` is False, with zeros, if the newest sample is more than `max_extrapolation_s`
        old or there is no second one to tell the acceleration.
        """
        start = bisect_left(self.samples, self._oldest_ns(t0_ns), key=_stamp)
        past = self.samples[start : bisect_right(self.samples, t0_ns, key=_stamp)]
        if not past or t0_ns - past[-1].stamp_ns > self.config.max_extrapolation_s * NS_PER_S:
            return _unknown(t0_ns)
        newest = past[-1]
        acceleration = self._acceleration_mps2(past)
        poses, valid = self._past_poses(past, newest.pose_at(t0_ns), t0_ns)
        if acceleration is None:
            return _unknown(t0_ns, poses, valid)
        elapsed_s = (t0_ns - newest.stamp_ns) / NS_PER_S
        speed = newest.speed_mps + acceleration * elapsed_s
        if speed * newest.speed_mps < 0:
            speed = 0.0  # a braking vehicle stops, it does not turn back
        steering = next((s for s in reversed(past) if s.steering_rad is not None), None)
        steered = steering is not None and t0_ns - steering.stamp_ns <= self.config.max_age_s * NS_PER_S
        return EgoState(
            stamp_ns=t0_ns,
            speed_mps=speed,
            acceleration_mps2=acceleration,
            yaw_rate_radps=newest.yaw_rate_radps,
            steering_rad=float(steering.steering_rad or 0.0) if steering and steered else 0.0,
            past_poses=poses,
            motion_valid=True,
            steering_valid=steered,
            past_valid=valid,
        )

    def _oldest_ns(self, t0_ns: int) -> int:
        return t0_ns + round((min(PAST_POSE_TIMES_S) - self.config.max_gap_s) * NS_PER_S)

    def _acceleration_mps2(self, past: Sequence[MotionSample]) -> float | None:
        since_ns = past[-1].stamp_ns - round(self.config.acceleration_window_s * NS_PER_S)
        window = past[bisect_left(past, since_ns, key=_stamp) :]
        if len(window) < 2:
            return None
        times_s = np.array([sample.stamp_ns - since_ns for sample in window]) / NS_PER_S
        speeds = np.array([sample.speed_mps for sample in window])
        i, j = np.triu_indices(len(window), 1)
        return float(np.median((speeds[j] - speeds[i]) / (times_s[j] - times_s[i])))

    def _past_poses(
        self, past: Sequence[MotionSample], odom_from_base: NDArray[np.float64], t0_ns: int
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        base_from_odom = inverse(odom_from_base)
        poses = np.zeros((len(PAST_POSE_TIMES_S), 3))
        valid = np.zeros(len(PAST_POSE_TIMES_S), bool)
        for row, time_s in enumerate(PAST_POSE_TIMES_S):
            try:
                pose, _ = pose_between(past, t0_ns + round(time_s * NS_PER_S), self.config)
            except PoseError:
                continue
            poses[row] = planar_pose(base_from_odom @ pose)
            valid[row] = True
        return poses, valid


def pose_between(
    samples: Sequence[MotionSample], stamp_ns: int, config: OdometryConfig
) -> tuple[NDArray[np.float64], float]:
    """`odom_from_base` (4, 4) at a stamp, and by how many seconds it lies outside the samples.

    Inside it is interpolated; outside the twist of the nearest sample is continued, which at 100 Hz
    is far quieter than the difference of the two nearest poses.

    Raises:
        PoseError: no samples, too far outside, or in a hole of more than `max_gap_s`.
    """
    after = bisect_left(samples, stamp_ns, key=_stamp)
    # The two around it, or the ends: hundreds of samples are kept, and this runs for every camera.
    inside = 0 < after < len(samples)
    near = samples[after - 1 : after + 1] if inside else [*samples[:1], *samples[1:][-1:]]
    track = PoseTrack(
        tuple(sample.stamp_ns for sample in near), tuple(sample.odom_from_base for sample in near)
    )
    pose, beyond_s = track.at(stamp_ns, config.max_extrapolation_s)
    if beyond_s > 0:
        nearest = samples[-1] if stamp_ns > samples[-1].stamp_ns else samples[0]
        return nearest.pose_at(stamp_ns), beyond_s
    gap_s = (samples[after].stamp_ns - samples[max(after - 1, 0)].stamp_ns) / NS_PER_S
    if gap_s > config.max_gap_s and samples[after].stamp_ns != stamp_ns:
        raise PoseError(
            f"no pose at {stamp_ns} ns: odometry has a hole of {gap_s:.3f} s there, "
            f"at most {config.max_gap_s:g} s is interpolated over"
        )
    return pose, 0.0


def samples_from_poses(
    stamps_ns: Sequence[int], odom_from_base: Sequence[NDArray[np.float64]], baseline_s: float = 0.3
) -> list[MotionSample]:
    """Samples of a log that has poses but no twist, such as nuScenes without its CAN bus.

    Speed and yaw rate are those at the end of the parabola through the pose and two earlier ones,
    each at least `baseline_s` before the next: nothing after a stamp takes part, and the small steps
    of a localization do not look like sprints. The first pose has none before it and makes no sample;
    the ones next to it have one and get the mean since then.
    """
    samples = []
    for i in range(1, len(stamps_ns)):
        points = [i]
        while len(points) < 3:
            before = bisect_right(stamps_ns, stamps_ns[points[-1]] - round(baseline_s * NS_PER_S)) - 1
            if before < 0:
                break
            points.append(before)
        if len(points) == 1:
            points.append(0)
        speed, yaw_rate = _end_rates([stamps_ns[p] for p in points], [odom_from_base[p] for p in points])
        samples.append(MotionSample(stamps_ns[i], odom_from_base[i], speed, yaw_rate))
    return samples


def _end_rates(stamps_ns: Sequence[int], poses: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """Speed along x and yaw rate at the first of two or three poses, newest first."""
    rates = []
    for k in range(len(poses) - 1):
        elapsed_s = (stamps_ns[k] - stamps_ns[k + 1]) / NS_PER_S
        moved = inverse(poses[k + 1]) @ poses[k]
        turn = yaw_of(moved)
        along = moved[0, 3] * np.cos(turn / 2) + moved[1, 3] * np.sin(turn / 2)
        rates.append(np.array([along / np.sinc(turn / (2 * np.pi)), turn]) / elapsed_s)
    if len(rates) == 1:
        speed, yaw_rate = rates[0]
    else:
        newer_s = (stamps_ns[0] - stamps_ns[1]) / NS_PER_S
        whole_s = (stamps_ns[0] - stamps_ns[2]) / NS_PER_S
        speed, yaw_rate = rates[0] + (rates[0] - rates[1]) * newer_s / whole_s
    return float(speed), float(yaw_rate)


def ego_numbers(ego: EgoState) -> NDArray[np.float32]:
    """`EgoState` as EGO_NUMBERS numbers of order one; what is not valid is 0 and says so.

    Order: speed, acceleration, yaw rate, steering, motion valid, steering valid; then x, y, yaw,
    valid for each of PAST_POSE_TIMES_S.
    """
    motion = np.array(
        [
            ego.speed_mps / SPEED_UNIT_MPS,
            ego.acceleration_mps2 / ACCELERATION_UNIT_MPS2,
            ego.yaw_rate_radps / YAW_RATE_UNIT_RADPS,
        ]
    )
    valid = np.array([ego.motion_valid, ego.steering_valid], float)
    steering = [ego.steering_rad / 0.3 * valid[1]]
    past_valid = ego.past_valid[:, None].astype(float)
    past = np.concatenate([ego.past_poses / (10.0, 10.0, 1.0) * past_valid, past_valid], axis=1)
    return np.concatenate([motion * valid[0], steering, valid, past.ravel()]).astype(np.float32)


def admlp_vector(ego: EgoState, command: Command) -> NDArray[np.float32]:
    """(21,) the state in the public AD-MLP layout, for baselines that speak it.

    E2E-AD/AD-MLP concatenates the entries of a table in the order of their sorted names, ground truth
    left out (`pytorch/admlp/planner.py` at 98ac158): ``a`` (3), ``cmd`` (3), ``v`` (3), ``x`` (4 past
    poses of 3). The table itself is not public, so what stands inside the entries is our reading:
    ``a`` and ``v`` are (right, forward, turning), ``cmd`` is one-hot LEFT, RIGHT, STRAIGHT, ``x`` runs
    from the oldest pose to the newest. Axes are its own: x right, y forward, meters, of base_link.
    Unknown values are zero, and so is the command UNKNOWN.
    """
    one_hot = np.zeros(NUM_COMMANDS)
    if command is not Command.UNKNOWN:
        one_hot[command.anchor_row] = 1
    forward, left, yaw = (ego.past_poses * ego.past_valid[:, None])[::-1].T
    return np.concatenate(
        [
            (0.0, ego.acceleration_mps2, 0.0),
            one_hot,
            (0.0, ego.speed_mps, ego.yaw_rate_radps),
            np.stack([-left, forward, yaw], axis=1).ravel(),
        ]
    ).astype(np.float32)


def _stamp(sample: MotionSample) -> int:
    return sample.stamp_ns


def _unknown(
    t0_ns: int, poses: NDArray[np.float64] | None = None, valid: NDArray[np.bool_] | None = None
) -> EgoState:
    count = len(PAST_POSE_TIMES_S)
    return EgoState(
        stamp_ns=t0_ns,
        speed_mps=0.0,
        acceleration_mps2=0.0,
        yaw_rate_radps=0.0,
        steering_rad=0.0,
        past_poses=np.zeros((count, 3)) if poses is None else poses,
        motion_valid=False,
        steering_valid=False,
        past_valid=np.zeros(count, bool) if valid is None else valid,
    )
