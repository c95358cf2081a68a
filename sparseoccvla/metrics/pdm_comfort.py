"""Comfort as NAVSIM judges it: six smoothed signals within nuPlan's bounds.

Source: NAVSIM `pdm_comfort_metrics.py`, tag v1.1 and main. Quirks that scores depend on are kept: v1
smooths accelerations with one parabola over the whole plan, v2 with a window of 8; v2's "lateral"
acceleration of a driven plan is always 0, because the bicycle has none and the move to the box center
adds the turning terms to the longitudinal one.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy.signal import savgol_filter

from sparseoccvla.metrics.pdm_motion import DT_S, PACIFICA, State, VehicleShape

# nuPlan's bounds: m/s^2, m/s^3, rad/s, rad/s^2. Strict.
BOUNDS = {
    "lon_accel": (-4.05, 2.40),
    "lat_accel": (-4.89, 4.89),
    "jerk_mag": (-8.37, 8.37),
    "lon_jerk": (-4.13, 4.13),
    "yaw_accel": (-1.93, 1.93),
    "yaw_rate": (-0.95, 0.95),
}
# Largest root mean square difference of two consecutive plans, in the same units.
EXTENDED_BOUNDS = {"acceleration": 0.7, "jerk": 0.5, "yaw_rate": 0.1, "yaw_accel": 0.1}


class PdmVersion(StrEnum):
    """V1: NAVSIM v1.1, PDMS. V2: NAVSIM main of 2025, EPDMS."""

    V1 = "v1"
    V2 = "v2"


def comfort_terms(
    states: NDArray[np.floating], version: PdmVersion, vehicle: VehicleShape = PACIFICA
) -> dict[str, bool]:
    """Whether each signal of states (T, 11) at 10 Hz stays within its bounds."""
    signals = _signals(states, version, vehicle)
    return {
        name: bool(((signals[name] > low) & (signals[name] < high)).all())
        for name, (low, high) in BOUNDS.items()
    }


def _signals(
    states: NDArray[np.floating], version: PdmVersion, vehicle: VehicleShape
) -> dict[str, NDArray[np.float64]]:
    forward, sideways = states[:, State.AX], states[:, State.AY]
    size = np.hypot(forward, sideways)
    if version is PdmVersion.V2:
        turning = states[:, State.YAW_RATE] ** 2 + states[:, State.YAW_ACC]
        forward = forward + vehicle.center_ahead_m * turning
    window, jerk_window = (len(states), len(states)) if version is PdmVersion.V1 else (8, 15)
    return {
        "lon_accel": _smooth(forward, window),
        "lat_accel": _smooth(sideways, window),
        "jerk_mag": _jerk(size, jerk_window),
        "lon_jerk": _jerk(forward, jerk_window),
        "yaw_accel": _yaw_derivative(states, order=2, degree=3),
        "yaw_rate": _yaw_derivative(states, order=1, degree=2),
    }


def history_comfort(
    states: NDArray[np.floating], past_states: NDArray[np.floating] | None, vehicle: VehicleShape = PACIFICA
) -> float:
    """V2's HC: the six terms over what was driven before and the plan. 1 without a past.

    Args:
        states: (41, 11) the driven plan.
        past_states: (4, 11) at -1.5, -1.0, -0.5 and 0 s, in the plan's frame.
        vehicle: whose box center the accelerations are taken at.
    """
    if past_states is None:
        return 1.0
    known = np.array(past_states, float)
    known[:, State.HEADING] = np.unwrap(known[:, State.HEADING])
    times = np.linspace(-1.5, 0, len(known))
    # NAVSIM drops the sample at -0.1 s and takes the rest for evenly spaced, and its interpolation
    # forgets turning rates.
    wanted = -1.5 + DT_S * np.arange(14)
    past = np.stack([np.interp(wanted, times, column) for column in known.T], axis=1)
    past[:, [State.YAW_RATE, State.YAW_ACC, State.STEER_RATE]] = 0
    terms = comfort_terms(np.concatenate([past, states]), PdmVersion.V2, vehicle)
    return float(all(terms.values()))


def extended_comfort(
    states: NDArray[np.floating], previous_states: NDArray[np.floating], interval_s: float
) -> float:
    """V2's EC: 1 if two consecutive driven plans (41, 11) feel alike where they overlap in time.

    Raises:
        ValueError: the frames are not 0.1 to 0.55 s apart, so they are not consecutive.
    """
    shift = round(interval_s / DT_S)
    if shift < 1 or interval_s >= 0.55:
        raise ValueError(f"the plans are {interval_s:g} s apart, extended comfort wants 0.1 to 0.55 s")
    now, before = _felt(states[:-shift]), _felt(previous_states[shift:])
    rms = {name: float(np.sqrt(np.mean((now[name] - before[name]) ** 2))) for name in EXTENDED_BOUNDS}
    return float(all(rms[name] <= bound for name, bound in EXTENDED_BOUNDS.items()))


def _felt(states: NDArray[np.floating]) -> dict[str, NDArray[np.float64]]:
    size = np.hypot(states[:, State.AX], states[:, State.AY])
    return {
        "acceleration": _smooth(size, 8),
        "jerk": _jerk(size, 15),
        "yaw_rate": _yaw_derivative(states, order=1, degree=2),
        "yaw_accel": _yaw_derivative(states, order=2, degree=2),
    }


def _smooth(signal: NDArray[np.floating], window: int) -> NDArray[np.float64]:
    return np.round(savgol_filter(signal, min(window, len(signal)), 2), 8)


def _jerk(acceleration: NDArray[np.floating], window: int) -> NDArray[np.float64]:
    smooth = _smooth(acceleration, 8)
    return np.round(savgol_filter(smooth, min(window, len(smooth)), 2, deriv=1, delta=DT_S), 8)


def _yaw_derivative(states: NDArray[np.floating], order: int, degree: int) -> NDArray[np.float64]:
    heading = np.unwrap(states[:, State.HEADING])
    return np.round(savgol_filter(heading, min(5, len(heading)), degree, deriv=order, delta=DT_S), 8)
