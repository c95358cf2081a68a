"""What a trajectory must be to be followed: small pure functions, each returns a verdict or None.

How motion is read from six poses, 0.5 s apart, that start at the origin of base_link at t0:

* The speed of a step is its length over 0.5 s, negative if it leads against the mean heading of the
  step. It is the vehicle's speed in the middle of the step: six positions determine no more.
* The speed at a pose is the mean of the steps around it, the acceleration is their difference over
  0.5 s; the last pose continues the last change. So speeds and accelerations belong together: the
  change of speed between two poses is the mean of their accelerations times 0.5 s.
* Turning is judged on the path thinned to points that are six times the waypoint noise apart. The
  direction of a standing vehicle is that of its noise, and a turn is no less sharp for a stop in it.

The checks run in the order of `CANDIDATE_CHECKS`; each may rely on those before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.config import GuardConfig
from sparseoccvla.contracts import NUM_ANCHORS, NUM_STEPS, STEP_S, PlanProposal, PlanStatus
from sparseoccvla.geometry import wrap_angle

# A thinned path keeps points this many times the waypoint noise apart: the noise then turns a step
# by 2/6 rad at most, which the checks allow for.
_THINNING = 6.0
# Standing vehicles keep their heading, give or take this for each step.
_STANDING_TURN_RAD = 0.1
# Our own braking at the limit must pass the limit, whatever the last bit says.
_ROUNDING = 1e-6
# How far the heading may lie from the way driven, beside what a turn explains.
_SLIP_RAD = 0.35


@dataclass(frozen=True)
class Verdict:
    """Why a plan may not be followed, as a status bit and in words."""

    status: PlanStatus
    reason: str


@dataclass(frozen=True)
class Trajectory:
    """Six poses with the motion that follows from them; made by `read_motion`."""

    poses: NDArray[np.float64]  # (S, 3) x_m, y_m, yaw_rad in base_link at t0
    step_speeds_mps: NDArray[np.float64]  # (S,) in the middle of each step, negative backwards
    speeds_mps: NDArray[np.float64]  # (S,) at the poses
    accelerations_mps2: NDArray[np.float64]  # (S,) at the poses

    @property
    def points_m(self) -> NDArray[np.float64]:
        """(S + 1, 2) with the start."""
        return np.concatenate([np.zeros((1, 2)), self.poses[:, :2]])

    @property
    def steps_m(self) -> NDArray[np.float64]:
        """(S, 2) from each point to the next."""
        return np.diff(self.points_m, axis=0)


Check = Callable[[Trajectory, float, GuardConfig], Verdict | None]


def read_motion(poses: NDArray[np.floating]) -> Trajectory:
    """Speeds and accelerations of finite poses (S, 3), by the scheme in the module's text."""
    poses = np.asarray(poses, np.float64)
    yaw = np.concatenate([[0.0], poses[:, 2]])
    turn = wrap_angle(np.diff(yaw))
    middle = yaw[:-1] + turn / 2
    steps = np.diff(poses[:, :2], axis=0, prepend=np.zeros((1, 2)))
    ahead = steps[:, 0] * np.cos(middle) + steps[:, 1] * np.sin(middle)
    step_speeds = np.where(ahead < 0, -1.0, 1.0) * np.hypot(*steps.T) / STEP_S
    change = np.diff(step_speeds)
    change = np.append(change, change[-1])
    return Trajectory(poses, step_speeds, step_speeds + change / 2, change / STEP_S)


def well_formed(proposal: PlanProposal) -> Verdict | None:
    """Candidates and scores are arrays of floats of the right shapes."""
    for name, array, shape in (
        ("candidates", proposal.candidates, (NUM_ANCHORS, NUM_STEPS, 3)),
        ("scores", proposal.scores, (NUM_ANCHORS,)),
    ):
        if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype.kind != "f":
            kind = type(array).__name__
            came = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else kind
            return Verdict(PlanStatus.NOT_FINITE, f"proposal has {name} {came}, wanted float {shape}")
    return None


def finite(poses: NDArray[np.floating], score: float) -> Verdict | None:
    """All of a candidate's numbers are numbers, its score too."""
    bad = int(poses.size - np.isfinite(poses).sum())
    if bad:
        return Verdict(PlanStatus.NOT_FINITE, f"has {bad} of {poses.size} values that are not finite")
    if not np.isfinite(score):
        return Verdict(PlanStatus.NOT_FINITE, f"has score {score}")
    return None


def speed(plan: Trajectory, _start_speed_mps: float, config: GuardConfig) -> Verdict | None:
    """No step is faster than any vehicle of ours."""
    fastest = float(np.abs(plan.step_speeds_mps).max())
    if fastest <= config.max_speed_mps:
        return None
    return _infeasible(f"drives at {fastest:.1f} m/s, at most {config.max_speed_mps:g}")


def start(plan: Trajectory, start_speed_mps: float, config: GuardConfig) -> Verdict | None:
    """The first step goes on from the speed of the vehicle."""
    first = float(plan.step_speeds_mps[0])
    if abs(first - start_speed_mps) <= config.max_start_speed_error_mps:
        return None
    return _infeasible(
        f"starts at {first:.1f} m/s while the vehicle drives at {start_speed_mps:.1f}, "
        f"at most {config.max_start_speed_error_mps:g} apart"
    )


def acceleration(plan: Trajectory, _start_speed_mps: float, config: GuardConfig) -> Verdict | None:
    """Speed grows and falls as engine and brakes allow."""
    change = np.diff(plan.step_speeds_mps) / STEP_S
    for worst, limit, word in (
        (float(change.max()), config.max_acceleration_mps2, "speeds up"),
        (float(-change.min()), config.max_deceleration_mps2, "brakes"),
    ):
        if worst > limit + _ROUNDING:
            return _infeasible(f"{word} by {worst:.1f} m/s^2, at most {limit:g}")
    return None


def forward(plan: Trajectory, _start_speed_mps: float, config: GuardConfig) -> Verdict | None:
    """The plan does not lead back from the farthest point it has reached."""
    progress = np.concatenate([[0.0], np.cumsum(plan.step_speeds_mps * STEP_S)])
    back = float((np.maximum.accumulate(progress) - progress).max())
    if back <= config.max_reverse_m:
        return None
    return _infeasible(f"leads {back:.2f} m backwards, at most {config.max_reverse_m:g}")


def lateral_acceleration(plan: Trajectory, start_speed_mps: float, config: GuardConfig) -> Verdict | None:
    """The change of velocity across the way stays below the limit; needs no heading and no division."""
    # At t0 the vehicle moves along x: a virtual step before the first.
    before = np.concatenate([[[start_speed_mps * STEP_S, 0.0]], plan.steps_m])
    along = before[1:] + before[:-1]
    length = np.hypot(*along.T)
    change = before[1:] - before[:-1]
    across = np.abs(along[:, 0] * change[:, 1] - along[:, 1] * change[:, 0]) / np.maximum(length, 1e-9)
    worst = float(across.max()) / STEP_S**2
    if worst <= config.max_lateral_acceleration_mps2:
        return None
    return _infeasible(
        f"turns with {worst:.1f} m/s^2 of lateral acceleration, "
        f"at most {config.max_lateral_acceleration_mps2:g}"
    )


def curvature(plan: Trajectory, _start_speed_mps: float, config: GuardConfig) -> Verdict | None:
    """No bend is tighter than the steering allows."""
    steps = np.diff(_thinned(plan.points_m, _THINNING * config.path_noise_m), axis=0)
    if not len(steps):
        return None
    length = np.hypot(*steps.T)
    direction = np.arctan2(steps[:, 1], steps[:, 0])
    # A chord of an arc points half the turn ahead of its start; the first starts along x.
    turn = np.abs(wrap_angle(np.diff(direction, prepend=0.0)))
    between = (length + np.concatenate([[0.0], length[:-1]])) / 2
    noise = 2 * config.path_noise_m / np.minimum(length, np.concatenate([length[:1], length[:-1]]))
    excess = turn - noise - config.max_curvature_per_m * between
    worst = int(excess.argmax())
    if excess[worst] <= 0:
        return None
    return _infeasible(
        f"turns by {turn[worst]:.2f} rad over {between[worst]:.2f} m, a curvature of "
        f"{turn[worst] / between[worst]:.2f} 1/m, at most {config.max_curvature_per_m:g}"
    )


def heading(plan: Trajectory, _start_speed_mps: float, config: GuardConfig) -> Verdict | None:
    """The vehicle looks where it drives, and a standing one does not turn on the spot."""
    yaw = np.concatenate([[0.0], plan.poses[:, 2]])
    for i, step in enumerate(plan.steps_m):
        length = float(np.hypot(*step))
        turn = abs(float(wrap_angle(yaw[i + 1] - yaw[i])))
        allowed = config.max_curvature_per_m * length + _STANDING_TURN_RAD
        if length < _THINNING * config.path_noise_m:
            if turn > allowed:
                return _infeasible(f"turns by {turn:.2f} rad within {length:.2f} m, at most {allowed:.2f}")
            continue
        slip = abs(float(wrap_angle(yaw[i + 1] - np.arctan2(step[1], step[0]))))
        # A chord points half the turn before the heading at its end. Fast vehicles turn less.
        tightest = min(
            config.max_curvature_per_m, config.max_lateral_acceleration_mps2 * (STEP_S / length) ** 2
        )
        if slip > _SLIP_RAD + tightest * length / 2:
            return _infeasible(f"looks {slip:.2f} rad off the way it drives in step {i + 1}")
    return None


CANDIDATE_CHECKS: tuple[Check, ...] = (
    speed,
    start,
    acceleration,
    forward,
    lateral_acceleration,
    curvature,
    heading,
)


def _infeasible(reason: str) -> Verdict:
    return Verdict(PlanStatus.INFEASIBLE, reason)


def _thinned(points_m: NDArray[np.float64], least_m: float) -> NDArray[np.float64]:
    """The first point and every one that is at least `least_m` from the last one kept."""
    kept = [points_m[0]]
    for point in points_m[1:]:
        if np.hypot(*(point - kept[-1])) >= least_m:
            kept.append(point)
    return np.array(kept)
