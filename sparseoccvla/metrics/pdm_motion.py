"""How NAVSIM drives a plan: an LQR tracker and a kinematic bicycle, 4 s at 10 Hz.

Only the poses of a plan count. The tracker lags (a plan that stops at 4 s still rolls), so the driven
states, not the plan, are what a PDM score judges. Source: NAVSIM `pdm_simulator.py`, `batch_lqr.py`,
`batch_kinematic_bicycle.py` (v1.1 and v2 drive alike). Rear axle throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.geometry import wrap_angle
from sparseoccvla.metrics.agents import box_corners

DT_S = 0.1
NUM_STATES = 41  # the start and 4 s
LOOK_AHEAD = 10


class State(IntEnum):
    """Columns of a state, rear axle: meters, radians, seconds."""

    X = 0
    Y = 1
    HEADING = 2
    VX = 3
    VY = 4
    AX = 5
    AY = 6
    STEER = 7
    STEER_RATE = 8
    YAW_RATE = 9
    YAW_ACC = 10


NUM_COLUMNS = len(State)
POSE = [State.X, State.Y, State.HEADING]


@dataclass(frozen=True)
class VehicleShape:
    """The box around a vehicle, measured from its rear axle, and its wheelbase."""

    width_m: float
    length_m: float
    wheelbase_m: float
    center_ahead_m: float

    def corners_m(self, states: NDArray[np.floating]) -> NDArray[np.float64]:
        """(..., 4, 2) front left, rear left, rear right, front right of states (..., 11)."""
        return box_corners(self.centers_m(states), states[..., State.HEADING], self.length_m, self.width_m)

    def centers_m(self, states: NDArray[np.floating]) -> NDArray[np.float64]:
        """(..., 2) box centers."""
        heading = states[..., State.HEADING]
        ahead = np.stack([np.cos(heading), np.sin(heading)], axis=-1) * self.center_ahead_m
        return states[..., [State.X, State.Y]] + ahead


PACIFICA = VehicleShape(width_m=2.297, length_m=5.176, wheelbase_m=3.089, center_ahead_m=1.461)


def start_state(speed_mps: float, pose: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> NDArray[np.float64]:
    """A state (11,) that drives straight at constant speed."""
    state = np.zeros(NUM_COLUMNS)
    state[POSE], state[State.VX] = pose, speed_mps
    return state


def interpolate_plan(
    poses: NDArray[np.floating], start: NDArray[np.floating], step_s: float = 0.5
) -> NDArray[np.float64]:
    """A plan (K, 3) of x_m, y_m, yaw_rad at `step_s` as 41 poses at 10 Hz, from the start state on.

    Raises:
        ValueError: the plan is shorter than 4 s; see `lengthen`.
    """
    times = step_s * np.arange(len(poses) + 1)
    wanted = DT_S * np.arange(NUM_STATES)
    if times[-1] < wanted[-1] - 1e-9:
        raise ValueError(f"the plan ends at {times[-1]:g} s, a PDM score wants {wanted[-1]:g} s; lengthen it")
    known = np.concatenate([start[None, POSE], poses])
    known[:, 2] = np.unwrap(known[:, 2])
    dense = np.stack([np.interp(wanted, times, column) for column in known.T], axis=1)
    dense[:, 2] = wrap_angle(dense[:, 2])
    return dense


def lengthen(poses: NDArray[np.floating], steps: int = 8) -> NDArray[np.float64]:
    """A plan (K, 3) from the origin continued to `steps` steps at its last step's speed and yaw rate.

    Ours: the stack plans 3 s, a PDM score wants 4 s.
    """
    path = np.concatenate([np.zeros((1, 3)), poses])
    turn = float(wrap_angle(path[-1, 2] - path[-2, 2]))
    length = float(np.linalg.norm(path[-1, :2] - path[-2, :2]))
    while len(path) <= steps:
        x, y, yaw = path[-1]
        middle = yaw + turn / 2
        path = np.append(
            path, [[x + length * np.cos(middle), y + length * np.sin(middle), yaw + turn]], axis=0
        )
    return path[1:]


def simulate(
    plan: NDArray[np.floating], start: NDArray[np.floating], vehicle: VehicleShape = PACIFICA
) -> NDArray[np.float64]:
    """States (41, 11) of a vehicle that tracks the poses (41, 3) of `interpolate_plan`."""
    speeds, curvatures = _profiles(plan)
    states = np.zeros((NUM_STATES, NUM_COLUMNS))
    states[0] = start
    for step in range(NUM_STATES - 1):
        acceleration, steer_rate = _track(states[step], plan[step], step, speeds, curvatures, vehicle)
        states[step + 1] = _drive(states[step], acceleration, steer_rate, vehicle)
    return states


def _profiles(plan: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Speed and curvature (40,) that fit a plan's displacements and turns by regularized least squares."""
    moves, turns = np.diff(plan[:, :2], axis=0), wrap_angle(np.diff(plan[:, 2]))
    count = len(moves)
    past = np.tri(count, dtype=bool)

    direction = np.stack([np.cos(plan[:-1, 2]), np.sin(plan[:-1, 2])], axis=1).reshape(-1, 1)
    speed_model = np.where(np.repeat(past, 2, axis=0), direction * DT_S**2, 0.0)
    speed_model[:, :1] = direction * DT_S
    # NAVSIM means to punish differences of accelerations, but its matrix loses the +1 of every row
    # except the last: it punishes accelerations. Published scores have it, so it is kept.
    rough = np.zeros((count - 2, count))
    rough[:, 1:-1] = -np.eye(count - 2)
    rough[-1, -1] = 1
    fit = np.linalg.pinv(speed_model.T @ speed_model + 1e-4 * rough.T @ rough) @ speed_model.T @ moves.ravel()
    speeds = fit[0] + np.concatenate([[0.0], np.cumsum(fit[1:] * DT_S)])

    turn_model = np.where(past, speeds[:, None] * DT_S**2, 0.0)
    turn_model[:, 0] = speeds * DT_S
    penalty = np.full(count, 1e-2)
    penalty[0] = 1e-10
    fit = np.linalg.pinv(turn_model.T @ turn_model + np.diag(penalty)) @ turn_model.T @ turns
    return speeds, fit[0] + np.concatenate([[0.0], np.cumsum(fit[1:] * DT_S)])


def _track(
    state: NDArray[np.float64],
    wanted: NDArray[np.floating],
    step: int,
    speeds: NDArray[np.float64],
    curvatures: NDArray[np.float64],
    vehicle: VehicleShape,
) -> tuple[float, float]:
    """Acceleration and steering rate that best reach the profile one second ahead, held until then."""
    ahead = min(step + LOOK_AHEAD, len(speeds) - 1)
    speed, target = state[State.VX], speeds[ahead]
    if target <= 0.2 and speed <= 0.2:
        return -0.5 * (speed - target), 0.0
    horizon = LOOK_AHEAD * DT_S
    acceleration = 10 * horizon * (target - speed) / (10 * horizon**2 + 1)
    rolled = speed + acceleration * DT_S * np.arange(LOOK_AHEAD)
    curvature = np.full(LOOK_AHEAD, curvatures[ahead])
    curvature[: ahead - step] = curvatures[step:ahead]

    dx, dy = state[State.X] - wanted[0], state[State.Y] - wanted[1]
    error = np.array(
        [
            -dx * np.sin(wanted[2]) + dy * np.cos(wanted[2]),
            float(wrap_angle(state[State.HEADING] - wanted[2])),
            state[State.STEER],
        ]
    )
    response = np.zeros(3)  # of lateral error, heading error, steering to one unit of steering rate
    for v, kappa in zip(rolled, curvature, strict=True):
        model = np.array([[1, v * DT_S, 0], [0, 1, v * DT_S / vehicle.wheelbase_m], [0, 0, 1]])
        error = model @ error - [0, v * kappa * DT_S, 0]
        response = model @ response + [0, 0, DT_S]
    error[1:] = np.arctan2(np.sin(error[1:]), np.cos(error[1:]))
    weight = np.array([1.0, 10.0, 0.0])
    return acceleration, float(-(response * weight) @ error / ((response * weight) @ response + 1))


def _drive(
    state: NDArray[np.float64], acceleration: float, steer_rate: float, vehicle: VehicleShape
) -> NDArray[np.float64]:
    """One Euler step of the bicycle; acceleration lags by 0.2 s, steering by 0.05 s."""
    acceleration = state[State.AX] + DT_S / (DT_S + 0.2) * (acceleration - state[State.AX])
    steer_rate = DT_S / (DT_S + 0.05) * steer_rate
    speed, heading, steer = state[State.VX], state[State.HEADING], state[State.STEER]
    after = np.zeros(NUM_COLUMNS)
    after[State.X] = state[State.X] + speed * np.cos(heading) * DT_S
    after[State.Y] = state[State.Y] + speed * np.sin(heading) * DT_S
    after[State.HEADING] = wrap_angle(heading + speed * np.tan(steer) / vehicle.wheelbase_m * DT_S)
    after[State.VX] = speed + acceleration * DT_S
    after[State.AX] = acceleration
    after[State.STEER] = np.clip(steer + steer_rate * DT_S, -np.pi / 3, np.pi / 3)
    after[State.STEER_RATE] = steer_rate
    after[State.YAW_RATE] = after[State.VX] * np.tan(after[State.STEER]) / vehicle.wheelbase_m
    after[State.YAW_ACC] = (after[State.YAW_RATE] - state[State.YAW_RATE]) / DT_S
    return after
