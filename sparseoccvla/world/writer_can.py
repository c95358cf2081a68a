"""CAN bus records of a generated scene, in the layout of nuScenes' CAN bus expansion.

Like the real ones, poses are planar: height 0, no pitch or roll. They go on after the last keyframe, for as
long as the future of its plan reaches.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import NS_PER_S, Command
from sparseoccvla.data.can_bus import STEERING_RATIO
from sparseoccvla.geometry import yaw_of
from sparseoccvla.world.drive import Drive, EgoSample
from sparseoccvla.world.scene import Scene
from sparseoccvla.world.writer_tables import NS_PER_US

_POSE_HZ, _STEERING_HZ, _MONITOR_HZ = 50, 100, 2
_GRAVITY_MPS2 = 9.81
_WHEEL_RADIUS_M = 0.303  # from speed and rpm of real records
_TRACK_M = 1.5
_BRAKE_SWITCH = (1, 2)  # released, pressed


def write_can(root: Path, name: str, scene: Scene, drive: Drive, global_from_world: NDArray) -> None:
    """All records of a scene."""
    folder = root / "can_bus"
    folder.mkdir(exist_ok=True)
    first, last = int(drive.stamps_ns[0]), int(drive.stamps_ns[-1])
    pose = [_pose(ego, global_from_world) for ego in _samples(drive, first, last, _POSE_HZ)]
    steering = [
        {"utime": ego.stamp_ns // NS_PER_US, "value": _rounded(ego.steering_rad * STEERING_RATIO)}
        for ego in _samples(drive, first, last, _STEERING_HZ)
    ]
    monitor = [_monitor(drive, ego) for ego in _samples(drive, first, last, _MONITOR_HZ)]
    route = scene.ego.route.points_m @ global_from_world[:2, :2].T + global_from_world[:2, 3]
    messages: dict[str, Any] = {
        "pose": pose,
        "steeranglefeedback": steering,
        "vehicle_monitor": monitor,
        "route": [[_rounded(x), _rounded(y)] for x, y in route],
    }
    messages["meta"] = {
        kind: _meta(messages[kind]) for kind in ("pose", "steeranglefeedback", "vehicle_monitor")
    }
    for kind, content in messages.items():
        (folder / f"{name}_{kind}.json").write_text(json.dumps(content, separators=(",", ":")))


def _samples(drive: Drive, first_ns: int, last_ns: int, rate_hz: int) -> list[EgoSample]:
    return [drive.ego_at(stamp) for stamp in range(first_ns, last_ns + 1, NS_PER_S // rate_hz)]


def _pose(ego: EgoSample, global_from_world: NDArray) -> dict[str, Any]:
    pose = global_from_world @ ego.world_from_base
    half = yaw_of(pose) / 2
    return {
        "utime": ego.stamp_ns // NS_PER_US,
        "pos": [_rounded(pose[0, 3]), _rounded(pose[1, 3]), 0.0],
        "orientation": [_rounded(np.cos(half), 9), 0.0, 0.0, _rounded(np.sin(half), 9)],
        "vel": [_rounded(ego.speed_mps), 0.0, 0.0],
        "accel": [
            _rounded(ego.acceleration_mps2),
            _rounded(ego.speed_mps * ego.yaw_rate_radps),
            _GRAVITY_MPS2,
        ],
        "rotation_rate": [0.0, 0.0, _rounded(ego.yaw_rate_radps)],
    }


def _monitor(drive: Drive, ego: EgoSample) -> dict[str, Any]:
    soon = drive.ego_at(min(ego.stamp_ns + NS_PER_S // 20, int(drive.stamps_ns[-1])))
    braking = ego.acceleration_mps2 < -0.2
    command = drive.command_at(ego.stamp_ns)
    turns = np.array([-1, 1]) * ego.yaw_rate_radps * _TRACK_M / 2
    left_rpm, right_rpm = (ego.speed_mps + turns) / (2 * np.pi * _WHEEL_RADIUS_M) * 60
    return {
        "utime": ego.stamp_ns // NS_PER_US,
        "vehicle_speed": _rounded(ego.speed_mps * 3.6, 2),
        "steering": _rounded(np.rad2deg(ego.steering_rad) * STEERING_RATIO, 1),
        "steering_speed": _rounded(np.rad2deg(soon.steering_rad - ego.steering_rad) * STEERING_RATIO * 20, 1),
        "yaw_rate": _rounded(np.rad2deg(ego.yaw_rate_radps), 1),
        "throttle": int(np.clip(ego.acceleration_mps2 * 300, 0, 1000)),
        "brake": int(np.clip(-ego.acceleration_mps2 * 12, 0, 126)) if braking else 0,
        "brake_switch": _BRAKE_SWITCH[braking],
        "gear_position": 7,
        "left_signal": int(command is Command.LEFT),
        "right_signal": int(command is Command.RIGHT),
        "rear_left_rpm": _rounded(left_rpm, 4),
        "rear_right_rpm": _rounded(right_rpm, 4),
        "available_distance": 120,
        "battery_level": 90,
    }


def _meta(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Statistics of each number of a message, as the devkit shows them."""
    times_s = np.array([message["utime"] for message in messages]) / 1e6
    spans_s = np.diff(times_s)
    meta: dict[str, Any] = {
        "message_count": len(messages),
        "message_freq": _rounded(1 / spans_s.mean(), 3),
        "timespan": _rounded(times_s[-1] - times_s[0], 3),
        "var_stats": {},
    }
    for key in messages[0]:
        values = np.array([message[key] for message in messages], float)
        meta["var_stats"][key] = {
            name: np.round(values.__getattribute__(name)(axis=0), 6).tolist()
            for name in ("max", "mean", "min", "std")
        }
    return meta


def _rounded(value: float, digits: int = 6) -> float:
    return round(float(value), digits) + 0.0
