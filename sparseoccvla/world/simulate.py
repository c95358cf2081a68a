"""Motion: an expert drives along the route, traffic follows its lanes."""

from __future__ import annotations

import numpy as np

from sparseoccvla.contracts import NS_PER_S, Command
from sparseoccvla.world.drive import DT_S, START_NS, Drive
from sparseoccvla.world.scene import WHEELBASE_M, Scene


def rollout(scene: Scene, duration_s: float = 20.0, start_ns: int = START_NS) -> Drive:
    """Drive through the scene."""
    network = scene.network
    count = round(duration_s / DT_S) + 1
    t = np.arange(count) * DT_S
    tracks = [plan.path.at(plan.start_m + plan.speed_mps * t) for plan in scene.plans]
    s, v = np.zeros(count), np.zeros(count)
    s[0], v[0] = 85.0, 8.0
    for k in range(1, count):
        ahead = s[k - 1] + np.linspace(0, 30, 31)
        limit = np.sqrt(2.2 / np.maximum(np.abs(scene.route.curvature_per_m(ahead)), 1e-3))
        allowed = min(10.0, float(np.sqrt(limit**2 + 2 * 1.5 * (ahead - s[k - 1])).min()))
        v[k] = v[k - 1] + np.clip(allowed - v[k - 1], -3 * DT_S, 1.5 * DT_S)
        s[k] = s[k - 1] + v[k] * DT_S
    ego_plane = scene.route.at(s)
    ego = scene.ground.lift(ego_plane, WHEELBASE_M, 1.5)
    yaw_rate = np.gradient(ego[:, 3], DT_S)
    poses = np.stack([scene.ground.lift(track, 2.5, 1.5) for track in tracks], axis=1)
    return Drive(
        start_ns + np.round(t * NS_PER_S).astype(np.int64),
        ego,
        v,
        np.gradient(v, DT_S),
        yaw_rate,
        np.arctan(WHEELBASE_M * yaw_rate / np.maximum(v, 1.0)),
        np.full(count, scene.route_command if network.cross else Command.STRAIGHT, np.uint8),
        scene.standing,
        scene.agents,
        poses,
        np.zeros((count, len(scene.agents))),
        np.zeros((count, len(scene.agents)), np.int8),
    )
