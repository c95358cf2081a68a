"""CAN bus records of a generated scene, in the layout of nuScenes' CAN bus expansion.

Like the real ones, poses are planar: height 0, no pitch or roll. They go on after the last keyframe, for as
long as the future of its plan reaches.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import NS_PER_S, Command
from sparseoccvla.data.can_bus import STEERING_RATIO
from sparseoccvla.data.scene import NS_PER_US
from sparseoccvla.world.drive import Drive
from sparseoccvla.world.scene import Scene

_POSE_HZ, _STEERING_HZ, _MONITOR_HZ = 50, 100, 2
_GRAVITY_MPS2 = 9.81
_WHEEL_RADIUS_M = 0.303  # from speed and rpm of real records
_TRACK_M = 1.5
_BRAKE_SWITCH = (1, 2)  # released, pressed
_BRAKING_MPS2 = -0.2

Array = NDArray[np.float64]


def write_can(root: Path, name: str, scene: Scene, drive: Drive, global_from_world: Array) -> None:
    """All records of a scene; `global_from_world` is a shift."""
    shift_m = global_from_world[:2, 3]
    messages: dict[str, list[dict[str, Any]]] = {
        "pose": list(_pose(_Motion.of(drive, _POSE_HZ), shift_m)),
        "steeranglefeedback": list(_steering(_Motion.of(drive, _STEERING_HZ))),
        "vehicle_monitor": list(_monitor(_Motion.of(drive, _MONITOR_HZ), drive)),
    }
    meta = {kind: _meta(content) for kind, content in messages.items()}
    route = np.round(scene.ego.route.points_m + shift_m, 3).tolist()
    folder = root / "can_bus"
    folder.mkdir(exist_ok=True)
    for kind, content in {**messages, "meta": meta, "route": route}.items():
        (folder / f"{name}_{kind}.json").write_text(json.dumps(content, separators=(",", ":")))


@dataclass(frozen=True)
class _Motion:
    """The ego at regular times, (n,) each; rounded, so that texts are short."""

    stamps_us: list[int]
    place_m: Array  # (n, 2) in the world
    yaw_rad: Array
    speed_mps: Array
    acceleration_mps2: Array
    yaw_rate_radps: Array
    wheel_rad: Array  # of the steering wheel, positive left

    @classmethod
    def of(cls, drive: Drive, rate_hz: int) -> _Motion:
        first = int(drive.stamps_ns[0])
        stamps = np.arange(first, int(drive.stamps_ns[-1]) + 1, NS_PER_S // rate_hz)

        def at(values: Array) -> Array:
            return np.round(np.interp(stamps - first, drive.stamps_ns - first, values), 6)

        x, y, _, yaw = (at(values) for values in drive.ego.T[:4])
        return cls(
            (stamps // NS_PER_US).tolist(),
            np.stack([x, y], axis=1),
            yaw,
            at(drive.speed_mps),
            at(drive.acceleration_mps2),
            at(drive.yaw_rate_radps),
            at(drive.steering_rad * STEERING_RATIO),
        )


def _pose(motion: _Motion, shift_m: Array) -> Iterator[dict[str, Any]]:
    place = np.round(motion.place_m + shift_m, 6)
    turn = np.round(np.stack([np.cos(motion.yaw_rad / 2), np.sin(motion.yaw_rad / 2)], axis=1), 9)
    sideways = np.round(motion.speed_mps * motion.yaw_rate_radps, 6)
    for k, stamp in enumerate(motion.stamps_us):
        yield {
            "utime": stamp,
            "pos": [*place[k].tolist(), 0.0],
            "orientation": [float(turn[k, 0]), 0.0, 0.0, float(turn[k, 1])],
            "vel": [float(motion.speed_mps[k]), 0.0, 0.0],
            "accel": [float(motion.acceleration_mps2[k]), float(sideways[k]), _GRAVITY_MPS2],
            "rotation_rate": [0.0, 0.0, float(motion.yaw_rate_radps[k])],
        }


def _steering(motion: _Motion) -> Iterator[dict[str, Any]]:
    for stamp, value in zip(motion.stamps_us, motion.wheel_rad.tolist(), strict=True):
        yield {"utime": stamp, "value": value}


def _monitor(motion: _Motion, drive: Drive) -> Iterator[dict[str, Any]]:
    wheel_deg = np.round(np.rad2deg(motion.wheel_rad), 1)
    wheel_rate = np.round(np.gradient(wheel_deg) * _MONITOR_HZ, 1)
    for k, stamp in enumerate(motion.stamps_us):
        speed, yaw_rate = float(motion.speed_mps[k]), float(motion.yaw_rate_radps[k])
        acceleration = float(motion.acceleration_mps2[k])
        command = drive.command_at(stamp * NS_PER_US)
        braking = acceleration < _BRAKING_MPS2
        left_rpm, right_rpm = (
            round((speed + side * yaw_rate * _TRACK_M / 2) / (2 * np.pi * _WHEEL_RADIUS_M) * 60, 4)
            for side in (-1, 1)
        )
        yield {
            "utime": stamp,
            "vehicle_speed": round(speed * 3.6, 2),
            "steering": float(wheel_deg[k]),
            "steering_speed": float(wheel_rate[k]),
            "yaw_rate": round(float(np.rad2deg(yaw_rate)), 1),
            "throttle": int(np.clip(acceleration * 300, 0, 1000)),
            "brake": int(np.clip(-acceleration * 12, 0, 126)) if braking else 0,
            "brake_switch": _BRAKE_SWITCH[braking],
            "gear_position": 7,
            "left_signal": int(command is Command.LEFT),
            "right_signal": int(command is Command.RIGHT),
            "rear_left_rpm": left_rpm,
            "rear_right_rpm": right_rpm,
            "available_distance": 120,
            "battery_level": 90,
        }


def _meta(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Statistics of a message's numbers, as the devkit shows them."""
    times_s = np.array([message["utime"] for message in messages]) / 1e6
    statistics = {}
    for key in messages[0]:
        values = np.array([message[key] for message in messages], float)
        figures = {
            "max": values.max(axis=0),
            "mean": values.mean(axis=0),
            "min": values.min(axis=0),
            "std": values.std(axis=0),
        }
        statistics[key] = {name: np.round(figure, 6).tolist() for name, figure in figures.items()}
    return {
        "message_count": len(messages),
        "message_freq": round(float(1 / np.diff(times_s).mean()), 3),
        "timespan": round(float(times_s[-1] - times_s[0]), 3),
        "var_stats": statistics,
    }
